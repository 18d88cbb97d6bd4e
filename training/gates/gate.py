"""One gate for every model: read both versions, ask, and leave the report where it is looked for.

HOME/gates/MODEL/VERSION/gate.json   the verdict
HOME/gates/MODEL/VERSION/gate.html   the same to read
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from features.settings import Settings
from serve.artifacts import Artifact, read_artifact
from serve.errors import InvalidInput, NotFound
from serve.rollout.standing import find_champion
from training.datasets.dataset import Dataset, open_dataset
from training.detectors.days import Day
from training.gates.report import write_report
from training.gates.verdict import Verdict
from training.retention import using

MODELS: Final = ("recommend", "bitrate", "quality", "detectors")


def reports_of(settings: Settings, model: str, version: str) -> Path:
    """Folder of a version's report, HOME/gates/MODEL/VERSION."""
    return settings.home / "gates" / model / version


def gate(
    model: str,
    version: str,
    settings: Settings,
    *,
    dataset: Dataset | None = None,
    cut_ms: int | None = None,
    against: str | None = None,
    days: Callable[[Settings], Sequence[Day]] | None = None,
) -> Verdict:
    """Ask whether a version may become a canary, and write its report.

    Args:
        model: one of MODELS.
        version: the candidate, a version in the folder of models.
        settings: where things are.
        dataset: of `recommend`: events up to now; None: the data set that the candidate's lineage names. Others
            generate what they are asked with.
        cut_ms: of `recommend`: starts from then on (UTC ms) are held out; None: after both versions' newest event.
        against: the version to compare with; None: the one that answers (serve.rollout.standing).
        days: of `detectors`: makes the days that are held out, whose incidents are known (deployments.evenings).

    Returns:
        The verdict; `passed` says whether the candidate may go on.

    Raises:
        InvalidInput: a model that has no gate, or no data set is named.
        NotFound: a version, a champion or a data set that is not there.
        ArtifactError: the candidate's files are damaged, or the champion can't be served.
    """
    if model not in MODELS:
        raise InvalidInput(
            field="model", got=model, expected=f"one of {', '.join(MODELS)}", next_step="Correct the model's name."
        )
    with using(settings.models, model):
        return _gate(model, version, settings, dataset=dataset, cut_ms=cut_ms, against=against, days=days)


def _gate(
    model: str,
    version: str,
    settings: Settings,
    *,
    dataset: Dataset | None,
    cut_ms: int | None,
    against: str | None,
    days: Callable[[Settings], Sequence[Day]] | None,
) -> Verdict:
    candidate, champion = _version(settings, model, version), _champion(settings, model, against)
    if model == "recommend":
        from training.gates.recommend import gate_recommend  # noqa: PLC0415  each imports its own model's packages

        verdict = gate_recommend(
            candidate, champion, dataset or _dataset(candidate, settings), cut_ms=cut_ms, home=settings.home
        )
    elif model == "bitrate":
        from training.gates.bitrate import gate_bitrate  # noqa: PLC0415

        verdict = gate_bitrate(candidate, champion)
    elif model == "detectors":
        from training.gates.detectors import gate_detectors  # noqa: PLC0415

        if days is None:
            raise InvalidInput(
                field="days", got=None, expected="days whose incidents are known", next_step="Give what makes them."
            )
        verdict = gate_detectors(candidate, champion, days(settings))
    else:
        from training.gates.quality import gate_quality  # noqa: PLC0415

        verdict = gate_quality(candidate, champion, cache=settings.home / "cache" / "quality-gate")
    write_report(verdict, reports_of(settings, model, candidate.version))
    return verdict


def _version(settings: Settings, model: str, version: str) -> Artifact:
    folder = settings.models / model / version
    if not version or Path(version).name != version or not folder.is_dir():
        raise NotFound(
            field="version", got=version, expected=f"a version in {settings.models / model}",
            next_step="List them with `playhead models`, or train one.",
        )  # fmt: skip
    return read_artifact(folder)


def _champion(settings: Settings, model: str, against: str | None) -> Artifact:
    if against is not None:
        return _version(settings, model, against)
    version = find_champion(settings, model)
    if version is None:
        raise NotFound(
            field="champion", got="no champion", expected="a live version to compare with",
            next_step=f"Train the first one with `playhead train {model}`, or name a version with --against.",
        )  # fmt: skip
    return _version(settings, model, version)


def _dataset(candidate: Artifact, settings: Settings) -> Dataset:
    lineage = candidate.manifest.lineage
    if lineage is None or not lineage.dataset or Path(lineage.dataset).name != lineage.dataset:
        raise InvalidInput(
            field="--data", got="no data set", expected="the data set whose later events are held out",
            next_step="Name one with --data: the version's lineage tells none.",
        )  # fmt: skip
    return open_dataset(settings.datasets / lineage.dataset)
