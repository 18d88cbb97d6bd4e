"""The encoder's fit shared by several processes: Ray Train starts them, keeps them and starts them again.

All workers hold the same weights, optimiser and data. Each takes every n-th window of a batch; the gradients are
averaged over all predictions of the batch, so that a step is the one that a single process would make, up to rounding
(dropout aside: each worker draws its own). The first worker validates, decides and writes the checkpoint, which is the
file that a fit of one process writes, too: after each epoch, whole or not at all. Workers that start again, and a run
that is taken up later, go on from it and end where an unbroken run does.

The folder of the checkpoint must be seen by all workers: one machine, or a file system that the nodes share.

Importing this module imports Ray Train.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor, nn

from serve.errors import PlayheadError, Unavailable
from training.jobs import Resources, be_modest
from training.recommend.interactions import Interactions, Prefix
from training.recommend.model import EncoderConfig, Retrieval
from training.recommend.progress import ProgressReport, silent
from training.recommend.split import Split
from training.recommend.train import Fit, FitSettings, fit

MOST_FAILURES: Final = 3
"""Times that workers are started again after one died."""

_COLLECTIVE_S: Final = 600.0
"""The longest that workers wait for each other: the first one's validation is the longest pause."""

_LOOK_S: Final = 0.5


class Gloo:
    """One of several processes of a torch process group that share a fit."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """Whether it is the first."""
        return self.rank == 0

    def seed(self, code: int) -> int:
        """A seed for each."""
        return int.from_bytes(hashlib.sha256(f"{code}/{self.rank}".encode()).digest()[:6], "big")

    def share(self, windows: list[Prefix]) -> list[Prefix]:
        """Every n-th of a batch, which is sorted by length: equal work."""
        return windows[self.rank :: self.size]

    def average(self, parameters: Iterable[nn.Parameter], predictions: int) -> int:
        """One sum over the workers of all gradients, weighted with their numbers of predictions."""
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        parts = [
            torch.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten() * predictions
            for parameter in learned
        ]
        flat = torch.cat([*parts, torch.tensor([float(predictions)])])  # exact up to 2 ** 24 predictions
        dist.all_reduce(flat)
        total = round(flat[-1].item())
        if total:
            start = 0
            for parameter in learned:
                stop = start + parameter.numel()
                parameter.grad = (flat[start:stop] / total).view_as(parameter)
                start = stop
        return total

    def decided(self, figure: Callable[[], float]) -> float:
        """What the first finds."""
        found = torch.tensor([figure() if self.leads else 0.0], dtype=torch.float64)
        dist.broadcast(found, src=0)
        return float(found.item())


@dataclass
class _Meeting(TorchConfig):  # type: ignore[misc]
    """Workers that find each other by a file: torch's own meeting place would listen on all of a host's addresses.

    Attributes:
        folder: that all workers see.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type:
        return _MeetingBackend

    @property
    def train_func_context(self) -> Any:
        return super(TorchConfig, self).train_func_context


class _MeetingBackend(Backend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: _Meeting) -> None:
        """Join the workers that have just been started."""
        size, address = len(worker_group), worker_group.execute_single(0, ray.util.get_node_ip_address)
        place = str(Path(backend_config.folder) / f"meeting-{uuid4().hex}")
        ray.get([worker_group.execute_single_async(rank, _join, place, rank, size, address) for rank in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: _Meeting) -> None:
        """Nothing to do: the group ends with its processes."""
        del worker_group, backend_config


def _join(place: str, rank: int, size: int, address: str) -> None:
    if address.startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = timedelta(seconds=_COLLECTIVE_S)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size, timeout=timeout)


def fit_parallel(
    model: Retrieval,
    interactions: Interactions,
    settings: FitSettings,
    *,
    seed: int,
    workers: int,
    checkpoint: Path,
    stage: str = "encoder",
    progress: ProgressReport = silent,
    resources: Resources | None = None,
    origin: str = "",
) -> Fit:
    """As `training.recommend.train.fit` on the leave-one-out split, shared by workers of the Ray that is connected.

    Args:
        model: where the fit starts; it ends with the best epoch's weights, in evaluation mode.
        interactions: the data.
        settings: how.
        seed: of everything random. The same seed and number of workers give the same weights.
        workers: how many processes, 1 or more.
        checkpoint: file of the resumable state, in a folder that all workers see. It stays.
        stage: name for progress.
        progress: told after each epoch, in this process.
        resources: of each worker.
        origin: as `fit`.

    Returns:
        what happened.

    Raises:
        Unavailable: workers died more than MOST_FAILURES times, or can't be started; the checkpoint is kept.
    """
    resources = resources or Resources()
    folder = checkpoint.parent / f".{checkpoint.stem}-workers"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = folder / "progress.json"
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    origin = f"{origin}/{workers} workers"
    bare = replace(interactions, users=())  # no worker looks at names of users
    task = {
        "interactions": ray.put(bare), "weights": ray.put(weights), "config": asdict(model.config),
        "settings": asdict(settings), "seed": seed, "checkpoint": str(checkpoint), "told": str(told), "stage": stage,
        "origin": origin, "threads": max(1, int(resources.cpus)),
    }  # fmt: skip
    trainer = TorchTrainer(
        _work,
        train_loop_config=task,
        torch_config=_Meeting(folder=str(folder)),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=False, resources_per_worker={"CPU": resources.cpus, **resources.memory()}
        ),
        run_config=RunConfig(
            name="fit", storage_path=str(folder), failure_config=FailureConfig(max_failures=MOST_FAILURES)
        ),
    )
    try:
        with _following(told, progress):
            result = trainer.fit()
    except Exception as error:  # Ray raises its own, and what ended a worker
        raise _failed(error, checkpoint) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    epochs, seconds = result.return_value
    split = Split.leave_one_out(interactions)
    outcome = fit(  # nothing is left to fit: it takes up the state that the workers ended with
        model, interactions, split, replace(settings, epochs=epochs), seed=seed, checkpoint=checkpoint, origin=origin
    )
    progress(stage, settings.epochs, settings.epochs, f"validation NDCG@10 {outcome.validation_ndcg:.4f}")
    return replace(outcome, seconds=seconds)


def _work(task: dict[str, Any]) -> tuple[int, float]:
    """What each worker does; epochs fitted in all, and seconds since it was started."""
    be_modest()
    torch.set_num_threads(task["threads"])
    context = ray.train.get_context()
    team = Gloo(context.get_world_rank(), context.get_world_size())
    interactions: Interactions = ray.get(task["interactions"])
    weights: dict[str, Tensor] = ray.get(task["weights"])
    model = Retrieval(EncoderConfig(**task["config"]), weights["content"].clone())
    model.load_state_dict(weights)

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        if team.leads:
            path = Path(task["told"])
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps([stage, done, total, note]), encoding="utf-8")
            fresh.replace(path)

    outcome = fit(
        model, interactions, Split.leave_one_out(interactions), FitSettings(**task["settings"]), seed=task["seed"],
        stage=task["stage"], progress=progress, checkpoint=Path(task["checkpoint"]), team=team, origin=task["origin"],
    )  # fmt: skip
    ray.train.report({"epochs": outcome.epochs, "validation_ndcg@10": outcome.validation_ndcg})
    return outcome.epochs, outcome.seconds


class _following:  # noqa: N801 - a context manager, read as a verb
    """Tells the progress that the first worker writes to a file, from a thread, while the block runs."""

    def __init__(self, path: Path, progress: ProgressReport) -> None:
        self._path, self._progress, self._over = path, progress, threading.Event()
        self._last = ""
        self._thread = threading.Thread(target=self._follow, name="training-progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(_LOOK_S):
            try:
                text = self._path.read_text(encoding="utf-8")
            except OSError:  # before the first epoch's end
                continue
            if text != self._last:
                self._last = text
                stage, done, total, note = json.loads(text)
                self._progress(stage, done, total, note)


def _failed(error: Exception, checkpoint: Path) -> PlayheadError:
    return Unavailable(
        field="training workers",
        got=f"{type(error).__name__}: {error}"[:1200],
        expected="workers that end their fit",
        next_step=f"See the job's log; then run again with --resume: {checkpoint.name} holds what was fitted so far.",
    )
