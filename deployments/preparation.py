"""What must be there before anything is served: data, features, models. Each is made only where it is missing or old.

Run as `python -m deployments.preparation DATA` it tells its phases as JSON lines, then `{"data": NAME}` or
`{"error": ...}`. A process of its own, so that the one that holds the stack stays small: Feast and torch come and go
with this one. It starts a second one for the bitrate policy, which needs nothing of the others: one core each.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from deployments.progress import LineReporter, Moment, Notice, Reporter, phase
from features.errors import FeaturesError
from features.settings import Settings
from serve.errors import PlayheadError

if TYPE_CHECKING:
    from serve.artifacts import Manifest
    from training.datasets import Dataset

MODEL: Final = "recommend"
BITRATE: Final = "bitrate"
DEFAULT_SEED: Final = 0
POLICY: Final = "--policy"
"""In place of a data set's name: what the second process is for."""

_DEFINING: Final = ("definitions.py", "views.py", "layout.py", "records.py")


def registry_fingerprint(settings: Settings) -> str:
    """Names what Feast's registry would be told: the defining modules, Feast's version, and the folders they name."""
    digest = hashlib.sha256(f"{version('feast')} {settings.home} {settings.feast_registry}".encode())
    for name in _DEFINING:
        digest.update(files("features").joinpath(name).read_bytes())
    return digest.hexdigest()[:16]


def registry_is_current(settings: Settings) -> bool:
    """Whether the registry is there and was told of the present definitions."""
    if "://" not in settings.feast_registry and not Path(settings.feast_registry).is_file():
        return False
    try:
        return _applied(settings).read_text(encoding="utf-8") == registry_fingerprint(settings)
    except FileNotFoundError:
        return False


def prepare_data(name: str, settings: Settings, reporter: Reporter, *, fallback: bool = True) -> "Dataset":
    """Open a data set or make it.

    Args:
        name: of the data set.
        settings: where it lies.
        reporter: told of the phase `data`.
        fallback: take the synthetic audience where ml-100k cannot be downloaded.
    """
    from training.datasets import prepare  # noqa: PLC0415  (imports polars)

    def advance(text: str, share: float) -> None:
        reporter.tell(Notice(phase="data", moment=Moment.ADVANCE, share=share, text=text))

    with phase(reporter, "data", name) as found:
        dataset = prepare(name, settings, progress=advance, fallback=fallback)
        rows = dataset.rows
        found.append(
            f"{dataset.name}: {rows['events']:,} events, {rows['titles']:,} titles, {rows['profiles']:,} profiles"
        )
    return dataset


def prepare_features(dataset: "Dataset", settings: Settings, reporter: Reporter) -> None:
    """Tell Feast what there is if that changed, and fill the online store with what it lacks.

    Args:
        dataset: what is filled in.
        settings: where registry and store are.
        reporter: told of the phase `features`.
    """
    from features.store import apply, materialise  # noqa: PLC0415  (imports polars)

    def advance(done: int, total: int) -> None:
        share, text = done / max(total, 1), f"{done:,} of {total:,} rows"
        reporter.tell(Notice(phase="features", moment=Moment.ADVANCE, share=share, text=text))

    with phase(reporter, "features") as found:
        applied = not registry_is_current(settings)
        if applied:
            reporter.tell(Notice(phase="features", moment=Moment.ADVANCE, text="feast apply"))
            apply(settings)
            _applied(settings).write_text(registry_fingerprint(settings), encoding="utf-8")
        filled = materialise(settings, dataset.path, progress=advance)
        what = "registry applied" if applied else "registry current"
        found.append(f"{what}; {filled.profiles:,} profiles and {filled.titles:,} titles filled in")


def prepare_model(dataset: "Dataset", settings: Settings, reporter: Reporter) -> None:
    """Check the champion's files, or train the first one.

    Args:
        dataset: what to train on.
        settings: where models lie.
        reporter: told of the phases `model` and `training`.

    Raises:
        ArtifactError: the champion is damaged.
    """
    manifest = _champion(MODEL, settings, reporter)
    if manifest is not None:
        if manifest.data_snapshot != dataset.snapshot:
            text = f"was trained on other data; train on this with: playhead train {MODEL} --data {dataset.name}"
            reporter.tell(Notice(phase="model", moment=Moment.NOTE, text=text))
        return
    from deployments.candidates import train_and_settle  # noqa: PLC0415  (imports torch)

    # in this process: there is no Ray yet, and the registry is told of it with the next training
    train_and_settle(
        MODEL, settings, reporter, publish=True, dataset=dataset, seed=DEFAULT_SEED, resume=True, tracked=False
    )


def prepare_policy(settings: Settings, reporter: Reporter) -> None:
    """Check the bitrate champion's files, or train the first one: on published traces where they lie, else generated.

    Args:
        settings: where models lie.
        reporter: told of the phases `policy` and `bitrate`.

    Raises:
        ArtifactError: the champion is damaged.
    """
    if _champion(BITRATE, settings, reporter, phase_name="policy") is not None:
        return
    from deployments.candidates import train_and_settle  # noqa: PLC0415  (imports torch)

    train_and_settle(BITRATE, settings, reporter, publish=True, seed=DEFAULT_SEED, resume=True, tracked=False)


def has_champions(settings: Settings) -> bool:
    """Whether each model has a champion, so that nothing need be trained; its files are not looked at."""
    return all((settings.models / name / "champion").is_file() for name in (MODEL, BITRATE))


def _champion(model: str, settings: Settings, reporter: Reporter, phase_name: str = "model") -> "Manifest | None":
    """What the champion's manifest says, once all its files were checked; None where there is no champion."""
    from serve.artifacts import read_artifact, read_champion  # noqa: PLC0415

    champion = read_champion(settings.models, model)
    if champion is None:
        return None
    with phase(reporter, phase_name) as found:
        manifest = read_artifact(champion).manifest
        found.append(f"{model} {manifest.version}")
    return manifest


def _applied(settings: Settings) -> Path:
    return settings.home / "feast" / "applied"


def error_fields(error: PlayheadError | FeaturesError) -> dict[str, str]:
    """An error's four fields, as JSON."""
    return {name: str(getattr(error, name)) for name in ("field", "got", "expected", "next_step")}


def main() -> None:
    """Make everything ready for the data set named by the first argument; with POLICY for it, the bitrate policy."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print belongs in the log
    settings, reporter = Settings.from_env(), LineReporter(told)
    name = sys.argv[1]
    try:
        if name == POLICY:
            threading.Thread(target=_end_with_input, daemon=True).start()
            prepare_policy(settings, reporter)
            return
        with _beside(told) as policy:
            dataset = prepare_data(name, settings, reporter)
            prepare_features(dataset, settings, reporter)
            prepare_model(dataset, settings, reporter)
            if policy.wait() != 0:
                raise SystemExit(1)
    except (PlayheadError, FeaturesError) as error:
        told.write(json.dumps({"error": error_fields(error)}) + "\n")
        told.flush()
        raise SystemExit(1) from error
    told.write(json.dumps({"data": dataset.name}) + "\n")


@contextmanager
def _beside(told: IO[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """The process that makes the bitrate policy ready while the block runs; it ends with the block, or with us.

    Both tell the same pipe: a line is written at once, and shorter than what a pipe takes whole.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.preparation", POLICY], stdin=subprocess.PIPE, stdout=told
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def _end_with_input() -> None:
    """End when the standard input does: whoever started us is gone. What was trained so far lies in the checkpoint."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
