"""Versions of models, wherever they are told of: the models' folder, the registry, the service that runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from deployments.inventory import ModelVersion, model_versions
from deployments.service import ask
from deployments.state import RunFolder, StackState
from features.settings import Settings
from serve.errors import NotFound, PlayheadError
from training.registry import ALIASES, LINEAGE_TAG, METRICS_TAG, Registered, Registry
from training.tracking import flat

SERVICE_S: Final = 2.0
"""How long the service is waited for: a list must come at once."""

_FEW: Final = 4
"""Hex digits that may name a version."""

HEADLINES: Final[Mapping[str, str]] = {
    "recommend": "hr@10",
    "bitrate": "validation_lead",
    "quality": "both.all.mae",
    "detectors": "cost_s",
}
"""The one metric that is listed; for other models the first one of the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of one model.

    Attributes:
        name: the model.
        version: its content's hash.
        champion: whether the models' folder names it as what was published last.
        role: champion, challenger, shadow or previous: as the service says, else the registry, else the folder; empty:
            none.
        aliases: what the registry calls it.
        number: the registry's own count; 0: not registered.
        here: whether its files lie on this machine.
        created: ISO 8601, UTC; empty where unknown.
        data_snapshot: names what it was trained on; empty where unknown.
        lineage: data set, rows, times, parent, seed, run, environment; empty where unknown.
        metrics: what evaluation measured.
        headline: name of the metric that is listed; empty where there is none.
        value: of that metric.
        difference: of it from the champion's; None for the champion, or where either has none.
        share: of profiles or sessions that it answers, 0 to 1; None where no service tells.
        health: ok, suspect or unknown, with reasons; None where no service tells.
        trouble: what is wrong with its files or on the service; empty when nothing is.
    """

    name: str
    version: str
    champion: bool = False
    role: str = ""
    aliases: tuple[str, ...] = ()
    number: int = 0
    here: bool = False
    created: str = ""
    data_snapshot: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    headline: str = ""
    value: float | None = None
    difference: float | None = None
    share: float | None = None
    health: Mapping[str, Any] | None = None
    trouble: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All versions that are told of.

    Attributes:
        versions: newest first within a model.
        notes: who could not be asked, and why.
        service: address of the service that was asked; empty: none answered.
    """

    versions: tuple[Version, ...]
    notes: tuple[str, ...]
    service: str


def look_over(settings: Settings, url: str = "") -> Overview:
    """Bring together what the folder, the registry and the service tell; neither of the latter need answer.

    Args:
        settings: where they are.
        url: of the service; empty: the one that is up with this home, if there is one.
    """
    found = {(entry.name, entry.version): _of_folder(entry) for entry in model_versions(settings.models)}
    notes = []
    try:
        for known in Registry.of(settings).versions():
            key = known.model, known.version
            found[key] = _of_registry(known, found.get(key))
    except PlayheadError as error:
        notes.append(f"the registry is not asked: {error}")
    service, answering = _service(settings, url), ""
    if service:
        try:
            for told in ask(service, "/v1/models", timeout_s=SERVICE_S)["models"]:
                if told["version"]:
                    key = told["name"], told["version"]
                    found[key] = _of_service(told, found.get(key))
            answering = service
        except (PlayheadError, KeyError, TypeError) as error:
            notes.append(f"the service is not asked: {error}")
    return Overview(
        versions=tuple(_ranked(list(found.values()), served=bool(answering))), notes=tuple(notes), service=answering
    )


def _service(settings: Settings, url: str) -> str:
    if url:
        return url.rstrip("/")
    state = StackState.read(RunFolder(settings.home))
    return state.url if state is not None else ""


def _of_folder(entry: ModelVersion) -> Version:
    return Version(
        name=entry.name,
        version=entry.version,
        champion=entry.champion,
        here=True,
        created=entry.created,
        data_snapshot=entry.data_snapshot,
        lineage=entry.lineage,
        metrics=entry.metrics,
        trouble=entry.trouble,
    )


def _of_registry(known: Registered, here: Version | None) -> Version:
    entry = here or Version(
        name=known.model,
        version=known.version,
        created=known.tags.get("playhead.created", ""),
        data_snapshot=known.tags.get("playhead.data_snapshot", ""),
        lineage=known.document(LINEAGE_TAG),
        metrics=known.document(METRICS_TAG),
    )
    return replace(entry, aliases=known.aliases, number=known.number)


def _of_service(told: Mapping[str, Any], known: Version | None) -> Version:
    entry = known or Version(name=told["name"], version=told["version"])
    trouble = entry.trouble or ("" if told["state"] == "live" else f"{told['state']} {told['detail']}".strip())
    return replace(entry, role=told["role"], share=told["share"], health=told["health"], trouble=trouble)


def _ranked(versions: list[Version], *, served: bool) -> list[Version]:
    """With roles and the difference from the champion; newest first within a model."""
    models: dict[str, list[Version]] = {}
    for entry in versions:
        models.setdefault(entry.name, []).append(entry)
    ranked = []
    for _, entries in sorted(models.items()):
        by_service = served and any(entry.role for entry in entries)
        by_registry = any(alias in ALIASES for entry in entries for alias in entry.aliases)
        measured = []
        for entry in entries:
            role = entry.role
            if not role and (not by_service or "previous" in entry.aliases):
                of_ours = [alias for alias in ALIASES if alias in entry.aliases]
                role = of_ours[0] if of_ours and not by_service else "previous" if "previous" in of_ours else ""
                if not by_registry and entry.champion:
                    role = "champion"
            headline, value = _headline(entry)
            measured.append(replace(entry, role=role, headline=headline, value=value))
        best = next((entry for entry in measured if entry.role == "champion"), None)
        ranked += [
            replace(entry, difference=_difference(entry, best))
            for entry in sorted(measured, key=lambda entry: entry.created, reverse=True)
        ]
    return ranked


def _headline(entry: Version) -> tuple[str, float | None]:
    numbers = {
        name: float(value)
        for name, value in flat(entry.metrics).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    name = HEADLINES.get(entry.name, next(iter(numbers), ""))
    return (name, numbers[name]) if name in numbers else ("", None)


def _difference(entry: Version, champion: Version | None) -> float | None:
    if champion is None or entry is champion or entry.value is None or champion.value is None:
        return None
    return entry.value - champion.value if entry.headline == champion.headline else None


def find(versions: Sequence[Version], model: str | None, named: str) -> Version:
    """The version that is meant by a role, or by the beginning of its hash.

    Args:
        versions: of an overview.
        model: of this model; None: of any.
        named: champion, challenger, previous, shadow, or four or more hex digits.

    Raises:
        NotFound: none is, or more than one.
    """
    meant = _meant(versions, model, named)
    if len(meant) == 1:
        return meant[0]
    raise NotFound(
        field="version",
        got=f"{model or 'any model'} {named}" + (f": {len(meant)} versions" if meant else ""),
        expected="a role, or the beginning of one version's hash",
        next_step="`playhead models` lists them; name the model where several have that role.",
    )


def find_two(versions: Sequence[Version], model: str | None, first: str, second: str) -> tuple[Version, Version]:
    """Two versions, as `find` finds each; without a model, of the one model that has both, where one alone does.

    Raises:
        NotFound: see `find`.
    """
    rarest_first = sorted((first, second), key=lambda named: len(_meant(versions, model, named)))
    models = {entry.name for entry in _meant(versions, model, rarest_first[0])}
    both = [name for name in models if all(len(_meant(versions, name, named)) == 1 for named in rarest_first)]
    if len(both) == 1:
        model = both[0]
    found = {named: find(versions, model, named) for named in rarest_first}
    return found[first], found[second]


def _meant(versions: Sequence[Version], model: str | None, named: str) -> list[Version]:
    return [
        entry
        for entry in versions
        if model in {None, entry.name}
        and (entry.role == named or (len(named) >= _FEW and entry.version.startswith(named)))
    ]
