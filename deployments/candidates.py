"""New versions of models: trained, told to the registry, made the champion where they may be.

`train_candidate` works in the process that calls it. `run_as_job` has a worker of Ray do the same (deployments.rays);
`playhead train` uses it, and `playhead up` does not, for it trains what is missing before its Ray is there.

A version lies in PLAYHEAD_HOME/models before the registry hears of it, so that a registry that is down costs none: what
it does not know yet is told with the next version.

Importing this module imports torch.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from deployments.evenings import training_evenings
from deployments.progress import Moment, Notice, Reporter, advance, phase
from deployments.rays import OBJECT_STORE_BYTES, STREAMING_OBJECT_STORE_BYTES, ray_place
from deployments.state import RunFolder, store_url
from features.settings import Settings
from serve.artifacts import Artifact, read_artifact, set_champion
from serve.errors import ArtifactError, InvalidInput, PlayheadError, Unavailable
from serve.rollout.standing import find_champion
from serve.watchtower.settings import MODEL as DETECTORS
from training.bitrate.material import Material
from training.bitrate.pipeline import train_bitrate
from training.bitrate.train import FitSettings
from training.checks import check_data, read_profile, require, write_profile
from training.data_profiles import DataProfile
from training.datasets import Dataset
from training.detectors.train import train_detectors
from training.jobs import Resources, Tell, connected, run_job
from training.quality.encodes import ENCODES
from training.quality.noreference_export import NAME as QUALITY
from training.quality.noreference_pipeline import train_quality
from training.recommend.pipeline import train_recommend
from training.recommend.train import FitSettings as EncoderFit
from training.registry import Registry
from training.runs import Run

MODEL: Final = "recommend"
BITRATE: Final = "bitrate"
STREAMING_FROM_ROWS: Final = 20_000_000
"""Events from which on they are read in parts, unless told otherwise."""

_MOST_THREADS: Final = 8  # the models are small: more threads wait for each other
_MOST_CAUGHT_UP: Final = 20


def threads() -> int:
    """Half of the usable cores: threads that share a core with other work spin instead of working."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable // 2, _MOST_THREADS))


def train_candidate(
    model: str,
    settings: Settings,
    reporter: Reporter,
    *,
    dataset: Dataset | None = None,
    seed: int = 0,
    warm: bool = False,
    until_ms: int | None = None,
    resume: bool = False,
    tracked: bool = True,
    origin: str = "",
    checked: DataProfile | None = None,
    **options: Any,
) -> Artifact:
    """Train a version of a model in this process; the champion stays what it is.

    Args:
        model: recommend, bitrate, quality or detectors.
        settings: where models and the registry are.
        reporter: told of the phases `checks`, `training` (or the model's name) and `registry`.
        dataset: what recommend is trained on.
        seed: of everything random.
        warm: start from the weights of a version, or of detectors from its settings; not of quality.
        origin: that version; empty: the champion that answers (serve.rollout.standing).
        until_ms: recommend: only events before this time are used, UTC milliseconds; None: all.
        resume: take up the run with the same arguments that was interrupted, if there is one.
        tracked: whether data is checked, and run and version are told to the registry.
        checked: recommend: profile of data that was found right already, and is not checked again.
        options: recommend: `workers` (processes that share the encoder's fit) and `streaming` (True, False, or None: as
            the data's size asks for), which need a Ray that is connected, `since_ms`, and `fitting`, of the encoder.
            bitrate: `material`, `rounds`, `minutes`. quality: `folder`, `encodes`, `workers`. detectors: `evenings`.

    Returns:
        The version, in PLAYHEAD_HOME/models.

    Raises:
        InvalidInput: no such model, no champion to start from, or data that is too small.
        UnfitParent: recommend: that version's weights can't be started from.
        DataRefused: data that no model should learn from.
        ArtifactError: the champion is damaged, or the export failed.
    """
    parent = _parent(model, settings, origin) if warm else None
    parameters: dict[str, Any] = {
        "seed": seed,
        "warm": warm,
        "parent": parent.version if parent else "",
        **_plain(options),
    }
    if dataset is not None:
        parameters |= {"dataset": dataset.name, "snapshot": dataset.snapshot, "until_ms": until_ms}
    with _run(model, settings, parameters, reporter, tracked=tracked) as run:
        common: dict[str, Any] = {
            "seed": seed,
            "parent": parent,
            "resume": resume,
            "run": "" if run is None else run.id,
        }
        if model == MODEL:
            if dataset is None:
                raise InvalidInput(field="dataset", got=None, expected="a data set", next_step="Name one with --data.")
            artifact = _recommend(
                dataset, settings, reporter, tracked=tracked, checked=checked, until_ms=until_ms, **common, **options
            )
        elif model == BITRATE:
            artifact = _bitrate(settings, reporter, **common, **options)
        elif model == QUALITY:
            artifact = _quality(settings, reporter, **common, **options)
        elif model == DETECTORS:
            artifact = _detectors(settings, reporter, **common, **options)
        else:
            raise InvalidInput(
                field="model", got=model, expected=f"{MODEL}, {BITRATE}, {QUALITY} or {DETECTORS}",
                next_step="Correct the name.",
            )  # fmt: skip
        if run is not None:
            figures = {name: value for name, value in artifact.manifest.metrics.items() if isinstance(value, float)}
            run.metrics(figures)
            _register(artifact, settings, run.id, reporter)
    return artifact


def train_and_settle(
    model: str, settings: Settings, reporter: Reporter, *, publish: bool = False, **options: Any
) -> tuple[Artifact, bool]:
    """As `train_candidate`; the version becomes champion where there is none, or where it is asked for.

    Args:
        model: its name.
        settings: where models and the registry are.
        reporter: told of the phases of training.
        publish: make it champion although there is one.
        options: as `train_candidate`.

    Returns:
        The version, and whether it is the champion.
    """
    artifact = train_candidate(model, settings, reporter, **options)
    if publish or find_champion(settings, model) is None:
        set_champion(settings.models, model, artifact.version)
    if find_champion(settings, model) != artifact.version:  # such as where it was published once, and rolled back
        return artifact, False
    if options.get("tracked", True):
        with _registry_may_be_down(reporter, "the champion's alias is not set"):
            registry = Registry.of(settings)
            if registry.find(model, artifact.version) is not None:
                registry.set_alias(model, "champion", artifact.version)
    return artifact, True


def run_as_job(
    model: str,
    settings: Settings,
    reporter: Reporter,
    *,
    publish: bool = False,
    resources: Resources | None = None,
    **options: Any,
) -> tuple[Artifact, bool]:
    """As `train_and_settle`, by a worker of Ray that gives way to serving; SIGINT and SIGTERM end it.

    Args:
        model: its name.
        settings: where models and the registry are; the worker must see the same folders.
        reporter: told of the phases of training and, as `job`, of what happens to the worker.
        publish: make it champion although there is one.
        resources: of the worker; None: as many processors as `threads`.
        options: as `train_candidate`.

    Raises:
        JobError: no Ray can be started or reached, it lacks the resources, or its workers died.
        KeyboardInterrupt: it was cancelled; the checkpoint is kept.
    """
    settings = replace(settings, redis_url=store_url(settings))  # whose plan says who is champion
    resources = resources or Resources(cpus=float(threads()))
    workers = int(options.get("workers") or 1) if model == MODEL else 1
    cpus = resources.cpus + (workers if workers > 1 else 0)
    streamed = model == MODEL and (options.get("streaming") or _is_large(options.get("dataset")))
    store = STREAMING_OBJECT_STORE_BYTES if streamed else OBJECT_STORE_BYTES
    log = RunFolder(settings.home).log(f"train-{model}")

    def note(text: str) -> None:
        reporter.tell(Notice(phase="job", moment=Moment.NOTE, text=text))

    with ray_place(settings.home, cpus=cpus, object_store_bytes=store) as (place, words):
        with phase(reporter, "job", "starts Ray" if place.address is None else f"connects to {words}") as found:
            with contextlib.ExitStack() as stack:
                stack.enter_context(connected(place, f"train {model}"))
                kept = stack.pop_all()
            found.append(f"{words}, log {log}")
        with kept:
            try:
                result = run_job(
                    _train_in_worker,
                    {"model": model, "settings": settings, "publish": publish, "options": options},
                    resources=resources,
                    log=log,
                    told=lambda item: reporter.tell(Notice.from_json(item)),
                    note=note,
                    environment={name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")},
                )
            except KeyboardInterrupt:
                note("cancelled; what was trained so far is kept: take it up with --resume")
                raise
    return read_artifact(settings.models / model / result["version"]), bool(result["published"])


def _train_in_worker(
    tell: Tell, attempt: int, *, model: str, settings: Settings, publish: bool, options: dict[str, Any]
) -> dict[str, Any]:
    """The body of the job."""
    if attempt:
        options = {**options, "resume": True}
    artifact, published = train_and_settle(model, settings, _JobReporter(tell), publish=publish, **options)
    return {"version": artifact.version, "published": published}


class _JobReporter:
    """Tells the process that asked for the job."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def tell(self, notice: Notice) -> None:
        """Tell; of advances that follow on each other the newest is enough."""
        self._tell(asdict(notice), passing=notice.moment is Moment.ADVANCE)


def _recommend(
    dataset: Dataset, settings: Settings, reporter: Reporter, *, seed: int, parent: Artifact | None, resume: bool,
    run: str, until_ms: int | None, tracked: bool, checked: DataProfile | None = None, workers: int = 1,
    streaming: bool | None = None, fitting: EncoderFit | None = None, since_ms: int | None = None,
) -> Artifact:  # fmt: skip
    torch.set_num_threads(threads())
    if streaming is None:
        streaming = tracked and _is_large(dataset)
    profile = checked
    if tracked and checked is None:
        profile = _check(dataset, settings, reporter, streaming=streaming)
    kind = "" if until_ms is None else f"-until-{until_ms}"
    checkpoint = _checkpoint(settings, f"{MODEL}-{dataset.name}-{seed}{kind}", resume=resume)
    with phase(reporter, "training") as found:
        artifact = train_recommend(
            dataset.path, settings.models / MODEL, seed, advance(reporter, "training"), checkpoint=checkpoint,
            parent=parent, until_ms=until_ms, workers=workers, streaming=streaming, run=run, settings=fitting,
            since_ms=since_ms,
        )  # fmt: skip
        figures = [(name, artifact.manifest.metrics.get(name)) for name in ("hr@10", "ndcg@10")]
        shown = [f"{name} {value:.4f}" for name, value in figures if isinstance(value, float)]
        found.append(", ".join([f"{MODEL} {artifact.version}", *shown]))
    if profile is not None:
        write_profile(settings, MODEL, profile)
    return artifact


def _bitrate(
    settings: Settings, reporter: Reporter, *, seed: int, parent: Artifact | None, resume: bool, run: str,
    material: Material | None = None, rounds: int | None = None, minutes: float | None = None,
) -> Artifact:  # fmt: skip
    torch.set_num_threads(1)  # many small steps: threads would wait for each other
    material = material or Material.default()
    checkpoint = _checkpoint(settings, f"{BITRATE}-{material.name}-{seed}", resume=resume)
    with phase(reporter, BITRATE) as found:
        artifact = train_bitrate(
            material,
            settings.models / BITRATE,
            seed,
            advance(reporter, BITRATE),
            settings=FitSettings() if rounds is None else FitSettings(rounds=rounds),
            budget_s=None if minutes is None else 60 * minutes,
            checkpoint=checkpoint,
            parent=parent,
            run=run,
        )
        figures = artifact.manifest.metrics
        found.append(f"{BITRATE} {artifact.version}, validation lead over RobustMPC {figures['validation_lead']:.4f}")
    return artifact


def _quality(
    settings: Settings, reporter: Reporter, *, seed: int, parent: Artifact | None, resume: bool, run: str,
    folder: Path | None = None, encodes: int | None = None, workers: int = 1,
) -> Artifact:  # fmt: skip
    del resume  # labelled segments are kept, whatever is asked for
    if parent is not None:
        raise InvalidInput(
            field="warm", got=QUALITY, expected=f"{MODEL}, {BITRATE} or {DETECTORS}",
            next_step="Train it cold: it takes seconds.",
        )  # fmt: skip
    torch.set_num_threads(1)
    with phase(reporter, QUALITY) as found:
        artifact = train_quality(
            settings.models / QUALITY, seed, advance(reporter, QUALITY), folder=folder, workers=workers,
            encodes=ENCODES if encodes is None else encodes, run=run,
        )  # fmt: skip
        found.append(f"{QUALITY} {artifact.version}")
    return artifact


def _detectors(
    settings: Settings, reporter: Reporter, *, seed: int, parent: Artifact | None, resume: bool, run: str,
    evenings: int | None = None,
) -> Artifact:  # fmt: skip
    del resume  # evenings that were watched are kept, whatever is asked for
    told = advance(reporter, DETECTORS)
    with phase(reporter, DETECTORS) as found:
        count = {} if evenings is None else {"count": evenings}
        days = training_evenings(seed, settings.home / "cache" / DETECTORS, told, **count)
        artifact = train_detectors(settings.models / DETECTORS, days, seed, told, parent=parent, run=run)
        figures: Any = artifact.manifest.metrics
        found.append(
            f"{DETECTORS} {artifact.version}, costs {figures['cost_s']:.0f} s an evening, "
            f"{figures['start']['cost_s']:.0f} before"
        )
    return artifact


def _checkpoint(settings: Settings, name: str, *, resume: bool) -> Path:
    """File of a run's state, which is thrown away unless the run is to be taken up."""
    path = settings.home / "training" / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        path.unlink(missing_ok=True)
    return path


def _parent(model: str, settings: Settings, origin: str) -> Artifact:
    version = origin or find_champion(settings, model)
    if version is None:
        raise InvalidInput(
            field="warm", got=f"no champion of {model}", expected="a champion whose weights can be started from",
            next_step=f"Train the first one cold: playhead train {model}",
        )  # fmt: skip
    return read_artifact(settings.models / model / version)


def _is_large(dataset: Dataset | None) -> bool:
    return dataset is not None and dataset.rows["events"] >= STREAMING_FROM_ROWS


def _check(dataset: Dataset, settings: Settings, reporter: Reporter, *, streaming: bool) -> DataProfile | None:
    """Judge the data against what was trained on before; its profile, None where it is not judged.

    Raises:
        DataRefused: it is not as it must be.
    """
    if streaming:  # the checks read whole tables
        text = "not checked: data that is read in parts is judged when it is imported, and not again"
        reporter.tell(Notice(phase="checks", moment=Moment.NOTE, text=text))
        return None
    with phase(reporter, "checks", dataset.name) as found:
        report = check_data(dataset, read_profile(settings, MODEL))
        for problem in report.problems:
            if problem.severity != "error":
                reporter.tell(Notice(phase="checks", moment=Moment.NOTE, text=str(problem)))
        require(report)
        found.append(f"{dataset.name}: {len(report.problems)} warnings")
    return report.profile


@contextlib.contextmanager
def _run(
    model: str, settings: Settings, parameters: Mapping[str, Any], reporter: Reporter, *, tracked: bool
) -> Iterator[Run | None]:
    """A tracked run around the block; None where the registry is down, or nothing is to be tracked."""
    with contextlib.ExitStack() as stack:
        run = None
        if tracked:
            with _registry_may_be_down(reporter, "this run is not tracked"):
                run = stack.enter_context(Registry.of(settings).run(model, parameters=parameters))
        yield run


@contextlib.contextmanager
def _registry_may_be_down(reporter: Reporter, outcome: str) -> Iterator[None]:
    try:
        yield
    except PlayheadError as error:
        text = f"{outcome}: {error}; it is told with the next training"
        reporter.tell(Notice(phase="registry", moment=Moment.NOTE, text=text))


def _register(artifact: Artifact, settings: Settings, run_id: str, reporter: Reporter) -> None:
    """Tell the registry of a version, and of those of its model that it has not heard of."""
    model, missed = artifact.manifest.name, list[Path]()
    registry = Registry.of(settings)
    with (
        _registry_may_be_down(reporter, f"{model} {artifact.version} is not registered"),
        phase(reporter, "registry") as found,
    ):
        number = registry.register(artifact, run_id).number
        found.append(f"{model} {artifact.version} is number {number} at {registry.address}")
        known = {one.version for one in registry.versions(model)}
        folders = sorted(
            (settings.models / model).glob("[0-9a-f]*/manifest.json"), key=lambda path: path.stat().st_mtime
        )
        missed = [path.parent for path in folders if path.parent.name not in known][-_MOST_CAUGHT_UP:]
    with _registry_may_be_down(reporter, f"earlier versions of {model} are not registered"):
        for folder in missed:
            _adopt(registry, folder, run_id, reporter)


def _adopt(registry: Registry, folder: Path, run_id: str, reporter: Reporter) -> None:
    """Register an earlier version with its own run, or with this one where the registry does not know that.

    Raises:
        Unavailable: the registry does not answer.
    """
    try:
        earlier = read_artifact(folder)
    except ArtifactError as error:  # it holds up no other
        reporter.tell(Notice(phase="registry", moment=Moment.NOTE, text=f"{folder.name} is not registered: {error}"))
        return
    lineage = earlier.manifest.lineage
    if lineage is not None and lineage.run:
        with contextlib.suppress(Unavailable):  # a run of another registry looks so, too
            registry.register(earlier, lineage.run)
            return
    registry.register(earlier, run_id)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a run's parameters."""
    return {
        name: value if isinstance(value, bool | int | float | str) else getattr(value, "name", str(value))
        for name, value in options.items()
        if value is not None
    }
