"""What must be there before anything is served: data, features, model. Each is made only where it is missing or old.

Run as `python -m deployments.preparation DATA` it tells its phases as JSON lines, then `{"data": NAME}` or
`{"error": ...}`.
A process of its own, so that the one that holds the stack stays small: Feast and torch come and go with this one.
"""

import hashlib
import json
import os
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deployments.progress import LineReporter, Moment, Notice, Reporter, phase
from features.errors import FeaturesError
from features.settings import Settings
from serve.errors import PlayheadError

if TYPE_CHECKING:
    from training.datasets import Dataset

MODEL: Final = "recommend"
DEFAULT_SEED: Final = 0
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
    from serve.artifacts import read_artifact, read_champion  # noqa: PLC0415

    champion = read_champion(settings.models, MODEL)
    if champion is not None:
        with phase(reporter, "model") as found:
            manifest = read_artifact(champion).manifest
            found.append(f"{MODEL} {manifest.version}")
        if manifest.data_snapshot != dataset.snapshot:
            text = f"was trained on other data; train on this with: playhead train {MODEL} --data {dataset.name}"
            reporter.tell(Notice(phase="model", moment=Moment.NOTE, text=text))
        return
    from deployments.jobs import train  # noqa: PLC0415  (imports torch)

    train(dataset, settings, reporter, seed=DEFAULT_SEED, resume=True)


def _applied(settings: Settings) -> Path:
    return settings.home / "feast" / "applied"


def error_fields(error: PlayheadError | FeaturesError) -> dict[str, str]:
    """An error's four fields, as JSON."""
    return {name: str(getattr(error, name)) for name in ("field", "got", "expected", "next_step")}


def main() -> None:
    """Make everything ready for the data set named by the first argument."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print belongs in the log
    settings, reporter = Settings.from_env(), LineReporter(told)
    try:
        dataset = prepare_data(sys.argv[1], settings, reporter)
        prepare_features(dataset, settings, reporter)
        prepare_model(dataset, settings, reporter)
    except (PlayheadError, FeaturesError) as error:
        told.write(json.dumps({"error": error_fields(error)}) + "\n")
        told.flush()
        raise SystemExit(1) from error
    told.write(json.dumps({"data": dataset.name}) + "\n")


if __name__ == "__main__":
    main()
