"""What is kept of old versions, and what goes: their folders, the registry's copies, gates' reports, snapshots.

Kept of each model are the versions that its plan names (champion, challenger, shadow, the champion before), that the
folder names (`champion`, and the gateways' note), that any alias of the registry names, the newest, and what is
younger than an hour: it may be in the making. Kept of the data are the snapshots that a kept version learned from, and
the newest. All else that updates made goes; data sets that people named are theirs.

What is named is asked twice: a version is set aside under a hidden name, and comes back if somebody named it
meanwhile; once it is to go it has another name, under which half of it is never put back. While a version of a model
is judged (`using`), nothing of that model goes. Where the store, the registry or a plan can't be read, nobody knows
what is named, and nothing goes.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import redis

from features.settings import Settings
from serve.artifacts import CHAMPION, MANIFEST
from serve.errors import InvalidInput, PlayheadError, Unavailable
from serve.rollout.board import load_plan, plan_key
from serve.rollout.standing import SERVING, read_serving
from training.mirroring import named
from training.registry import LINEAGE_TAG, Registered, Registry

KEPT: Final = 10
"""Versions of a model that are kept, the newest, besides those that are named."""

KEPT_SNAPSHOTS: Final = 3
"""Snapshots of a model's updates that are kept, the newest, besides those that kept versions learned from."""

KEPT_VARIABLE: Final = "PLAYHEAD_KEEP_VERSIONS"
MOST_KEPT: Final = 10_000

_YOUNG_S: Final = 3600.0
_TIMEOUT_S: Final = 5.0
_ASIDE: Final = ".pruned-"
_DOOMED: Final = ".gone-"
"""Of what is being removed: half of a version must never come back."""
_LOCK: Final = ".using"
_VERSION: Final = re.compile(r"[0-9a-f]{12}")
_MODEL: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What went, or would.

    Attributes:
        model: whose.
        kept: version -> why: champion, challenger, shadow, previous, published, serving, an alias, newest, young.
        versions: whose folder, registry copy or both went.
        snapshots: data sets that went.
        reports: versions whose gate report went.
        freed_bytes: of this machine's disk; the registry's copies are not counted.
        trouble: why nothing, or not all, went; empty: all did.
    """

    model: str
    kept: Mapping[str, str]
    versions: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    freed_bytes: int = 0
    trouble: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def kept_from_env(env: Mapping[str, str] = os.environ) -> int:
    """How many of the newest versions are kept: PLAYHEAD_KEEP_VERSIONS, else KEPT.

    Raises:
        InvalidInput: no number from 1 to MOST_KEPT.
    """
    text = env.get(KEPT_VARIABLE) or str(KEPT)
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not 1 <= number <= MOST_KEPT:
        raise InvalidInput(
            field=KEPT_VARIABLE, got=text, expected=f"a whole number from 1 to {MOST_KEPT}",
            next_step="Correct it, or unset it.",
        )  # fmt: skip
    return number


@contextlib.contextmanager
def using(models: Path, model: str) -> Iterator[None]:
    """Keep all versions of a model where they are while the block runs; any number of processes may.

    Args:
        models: folder of model artifacts.
        model: whose.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that can't be written to can't be pruned either
            lock = stack.enter_context((models / model / _LOCK).open("a"))
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def models_of(settings: Settings) -> list[str]:
    """Models that have a folder on this machine."""
    return sorted(path.name for path in settings.models.glob("*") if path.is_dir() and _MODEL.fullmatch(path.name))


def prune(settings: Settings, model: str, *, keep: int = KEPT, dry_run: bool = False) -> Pruned:
    """Take away what need not be kept of a model.

    Args:
        settings: where models, data sets, reports, the store and the registry are.
        model: whose.
        keep: how many of the newest versions are kept in any case, at least 1.
        dry_run: only say what would go.

    Returns:
        What went, or would. A registry that ceases to answer half way, or a disk that refuses, is its `trouble`: the
        rest goes the next time.

    Raises:
        Unavailable: the store or the registry does not answer, or the plan can't be read: nothing went.
    """
    folder = settings.models / model
    with _alone(folder) as is_alone:
        if not is_alone:
            return Pruned(model=model, kept={}, trouble="a version is judged now, or pruned by somebody else")
        for left in folder.glob(f"{_ASIDE}*"):  # of a process that was killed
            _back(left)
        registry = Registry.of(settings)
        known = registry.versions(model)
        made_s = _made(folder, known)
        kept = _kept(settings, model, known, made_s, keep)
        going = [version for version in made_s if version not in kept]
        snapshots = _snapshots(settings, model, _learned(folder, known, kept))
        reports = sorted(
            path.name for path in (settings.home / "gates" / model).glob("*")
            if path.is_dir() and _VERSION.fullmatch(path.name) and path.name not in kept
        )  # fmt: skip
        if dry_run:
            sizes = [folder / version for version in going] + [settings.datasets / name for name in snapshots]
            sizes += [settings.home / "gates" / model / version for version in reports]
            return Pruned(
                model=model, kept=kept, versions=tuple(going), snapshots=tuple(snapshots), reports=tuple(reports),
                freed_bytes=sum(map(_size, sizes)),
            )  # fmt: skip
        return _take_away(settings, registry, model, kept, going, snapshots, reports)


def _take_away(
    settings: Settings, registry: Registry, model: str, kept: Mapping[str, str], going: Sequence[str],
    snapshots: Sequence[str], reports: Sequence[str],
) -> Pruned:  # fmt: skip
    folder, gone, removal = settings.models / model, list[str](), _Removal()
    with _set_aside(folder, going) as aside:
        known = registry.versions(model)
        kept = {**kept, **_named(settings, model, known)}  # somebody may have named one meanwhile
        for version in aside.keys() & kept.keys():
            _back(aside.pop(version))
        learned = _learned(folder, known, kept)
        for left in sorted(folder.glob(f"{_DOOMED}*")):  # by a process that was killed
            removal.of(left)
        for version in [version for version in going if version not in kept]:
            try:
                registry.forget(model, version)  # first: what an alias names by now is refused, and comes back
                if version in aside:
                    doomed = aside[version].rename(folder / f"{_DOOMED}{version}")
                    del aside[version]
                    removal.of(doomed)
            except (PlayheadError, OSError) as error:
                removal.troubles.append(f"{version}: {error}")
                break
            gone.append(version)
    snapshots = [name for name in snapshots if name not in learned and removal.of(settings.datasets / name)]
    for name in snapshots:
        for left in (settings.home / "training").glob(f"{model}-{name}-*.pt"):
            left.unlink(missing_ok=True)
    places = {version: settings.home / "gates" / model / version for version in reports if version not in kept}
    reports = [version for version, place in places.items() if removal.of(place)]
    pruned = Pruned(
        model=model, kept=kept, versions=tuple(gone), snapshots=tuple(snapshots), reports=tuple(reports),
        freed_bytes=removal.freed_bytes, trouble="; ".join(removal.troubles),
    )  # fmt: skip
    if gone or snapshots or reports or pruned.trouble:
        _log.info("pruned %s: %s", model, pruned)
    return pruned


def _kept(
    settings: Settings, model: str, known: Sequence[Registered], made_s: Mapping[str, float], keep: int
) -> dict[str, str]:
    """Version -> why it stays."""
    newest = sorted(made_s, key=lambda version: made_s[version], reverse=True)
    kept = dict.fromkeys(newest[:keep], "newest")
    for version in newest[keep:]:
        written_s = _written_s(settings.models / model / version)
        if max(made_s[version], written_s) > time.time() - _YOUNG_S:
            kept[version] = "young"
    return kept | _named(settings, model, known)


def _named(settings: Settings, model: str, known: Sequence[Registered]) -> dict[str, str]:
    """Version -> who names it.

    Raises:
        Unavailable: the plan can't be read.
    """
    folder, found = settings.models / model, dict[str, str]()
    for one in known:
        if one.aliases:
            found[one.version] = f"alias {', '.join(one.aliases)}"
    note = read_serving(folder / SERVING)
    found |= {note[field]: "serving" for field in ("champion", "taken") if isinstance(note.get(field), str)}  # type: ignore[misc]
    with contextlib.suppress(FileNotFoundError):
        found[(folder / CHAMPION).read_text(encoding="utf-8", errors="replace").strip()] = "published"
    try:
        with redis.Redis.from_url(
            settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        ) as store:
            dumped: Any = store.get(plan_key(model))
        plan = None if dumped is None else load_plan(dumped)
    except (redis.RedisError, OSError, ValueError) as error:
        raise Unavailable(
            field=f"plan of {model}", got=str(error)[:200], expected="a plan that can be read, or none",
            next_step="Nothing was pruned: who answers is not known. Start the stack, or correct REDIS_URL.",
        ) from error  # fmt: skip
    if plan is not None:
        found |= dict.fromkeys(named(plan), "previous") | dict(plan.versions)
        if plan.published:
            found.setdefault(plan.published, "published")
    return found


def _made(folder: Path, known: Sequence[Registered]) -> dict[str, float]:
    """Version -> when it was made, as its manifest says; of the folder and the registry, UTC seconds."""
    made = {one.version: _seconds(one.tags.get("playhead.created"), one.created_ms / 1000) for one in known}
    for path in folder.glob("*"):
        if path.is_dir() and _VERSION.fullmatch(path.name):
            made[path.name] = _seconds(_told(path, "created"), _written_s(path))
    return made


def _told(version: Path, field: str) -> Any:
    """What a version's manifest says; None where it can't be read."""
    try:
        return json.loads((version / MANIFEST).read_bytes())[field]
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _seconds(text: Any, otherwise: float) -> float:
    """A time in ISO 8601 as UTC seconds."""
    try:
        when = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return otherwise
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _written_s(path: Path) -> float:
    """When a folder's files were made, renamed or removed last, UTC seconds; 0: it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _learned(folder: Path, known: Sequence[Registered], kept: Mapping[str, str]) -> set[str]:
    """Data sets that kept versions learned from, as their manifests say, or the registry."""
    lineages = [_told(folder / version, "lineage") for version in kept]
    lineages += [one.document(LINEAGE_TAG) for one in known if one.version in kept]
    return {str(lineage.get("dataset")) for lineage in lineages if isinstance(lineage, dict)}


def _snapshots(settings: Settings, model: str, learned: set[str]) -> list[str]:
    """Snapshots of updates that no kept version learned from, but for the newest."""
    of_updates = re.compile(rf"{re.escape(model)}-[0-9]{{13}}")
    names = sorted(path.name for path in settings.datasets.glob(f"{model}-*") if of_updates.fullmatch(path.name))
    return [name for name in names[:-KEPT_SNAPSHOTS] if name not in learned]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody uses a version of the model while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextlib.contextmanager
def _set_aside(folder: Path, versions: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Hide versions; those that the block leaves in the mapping come back, however it ends."""
    aside: dict[str, Path] = {}
    try:
        for version in versions:
            if (folder / version).is_dir():
                aside[version] = (folder / version).rename(folder / f"{_ASIDE}{version}")
        yield aside
    finally:
        for path in aside.values():
            _back(path)


def _back(path: Path) -> None:
    """Undo what set a version aside, unless it came back by itself."""
    target = path.with_name(path.name.removeprefix(_ASIDE))
    if target.exists():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.rename(target)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


class _Removal:
    """Removes folders, one after the other; what can't be removed holds up nothing.

    Attributes:
        freed_bytes: that they held.
        troubles: what is wrong with those that remain.
    """

    def __init__(self) -> None:
        self.freed_bytes = 0
        self.troubles: list[str] = []

    def of(self, path: Path) -> bool:
        """Remove a folder; whether it is gone."""
        try:
            size = _size(path)
            shutil.rmtree(path)
        except OSError as error:
            self.troubles.append(f"{path.name}: {error}")
            return False
        self.freed_bytes += size
        return True
