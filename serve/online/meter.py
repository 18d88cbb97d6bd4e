"""The meter: exposures in, in their order; figures of each version and each model's drift out, a bucket at a time.

Nothing is written but what `commands` gives, and pages, which are written once: whoever has its state and reads the
exposures since comes to the same figures.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import orjson

from serve.errors import ArtifactError
from serve.histograms import add
from serve.online import board
from serve.online.drift import DriftWatch
from serve.online.pages import MOST_OUTCOMES, Page, find_pages, keep_pages, page_command, page_of, slots_of, version_of
from serve.online.reference import Grounds, Play, read_grounds
from serve.online.tallies import BUCKET_MS, CUTOFF, WINDOWS_S, Bucket, VersionTally
from serve.rollout.exposures import FINISHED, PLAYED, SHOWN, THUMBS_DOWN, THUMBS_UP
from serve.watchtower.board import Store
from serve.watchtower.state import checked, stamped

MOST_MODELS: Final = 8
MOST_VERSIONS: Final = 8
"""Of a model; of more, those that were shown last stay."""
MOST_PENDING: Final = 2_000
"""Pages with outcomes that a checkpoint may have to write."""

_KIND: Final = "online"
_VERSION: Final = 1
_KEPT: Final = WINDOWS_S[-1] * 1000 // BUCKET_MS
_READ_AGAIN: Final = 60_000 // BUCKET_MS
"""Buckets after which versions are looked for again that were not there: they come to each machine in their time."""

_log = logging.getLogger(__name__)

Exposure = Mapping[str, Any]


@dataclass(kw_only=True)
class _Model:
    """What is known of one model.

    Attributes:
        tallies: by version.
        watch: of its champion; None while there is none.
        latest: the version that made the last page that no rollout assigned to a challenger.
    """

    tallies: dict[str, VersionTally] = field(default_factory=dict)
    watch: DriftWatch | None = None
    latest: str | None = None


class OnlineMeter:
    """Measures all models.

    Args:
        models: folder of the models' artifacts, where versions' references are read from.
    """

    def __init__(self, models: Path) -> None:
        self._folder = models
        self._models: dict[str, _Model] = {}
        self._grounds: dict[tuple[str, str], Grounds] = {}
        self._unread: set[tuple[str, str]] = set()  # of these, those that could not be read
        self._pending: dict[str, Page] = {}

    @property
    def is_full(self) -> bool:
        """Whether what waits should be written now."""
        return len(self._pending) >= MOST_PENDING

    def take(self, store: Store, entries: Sequence[tuple[int, Exposure]], closes: Callable[[int], None]) -> None:
        """Take some exposures in.

        Args:
            store: remembers pages.
            entries: in their order; each with the bucket that it was told in.
            closes: called before each entry with its bucket; it closes those before.
        """
        asked = [one["request_id"] for _, one in entries if one["kind"] != SHOWN]
        shown = (one for _, one in entries if one["kind"] == SHOWN and version_of(one) is not None)
        keep_pages(store, {one["request_id"]: page_of(one) for one in shown})
        pages = find_pages(store, (request for request in asked if request not in self._pending))
        for at, one in entries:
            closes(at)
            if one["kind"] == SHOWN:
                self._show(at, one)
            elif (page := self._pending.get(one["request_id"]) or pages.get(one["request_id"])) is not None:
                self._happen(at, one, page)

    def close(self, at: int, champions: Mapping[str, str | None]) -> None:
        """A bucket is over.

        Args:
            at: the bucket.
            champions: model -> the champion, of those with a plan.
        """
        if at % _READ_AGAIN == 0:
            for key in self._unread:
                self._grounds.pop(key, None)
        for name, model in list(self._models.items()):
            for version, tally in list(model.tallies.items()):
                tally.forget(at)
                if tally.last < 0:
                    del model.tallies[version]
            champion = champions.get(name) or model.latest
            if champion is not None and (model.watch is None or model.watch.version != champion):
                model.watch = DriftWatch(champion, self._grounds_of(name, champion).reference)
            elif model.watch is not None:
                if model.watch.reference is None:
                    model.watch.reference = self._grounds_of(name, model.watch.version).reference
                model.watch.close(at)
            if not model.tallies:
                del self._models[name]

    def documents(self, at: int, roles: Mapping[str, Mapping[str, str]]) -> dict[str, bytes]:
        """What is known at the end of a bucket, by key.

        Args:
            at: the bucket.
            roles: model -> version -> `champion` or `challenger`.
        """
        told = {}
        for name, model in self._models.items():
            windows = [
                {
                    "window_s": window_s,
                    "versions": {
                        version: {
                            "role": roles.get(name, {}).get(version, ""),
                            **tally.measure(at, window_s, self._grounds_of(name, version)),
                        }
                        for version, tally in model.tallies.items()
                    },
                }
                for window_s in WINDOWS_S
            ]
            figures = {"ts": (at + 1) * BUCKET_MS, "model": name, **windows[0], "windows": windows}
            told[board.online_key(name)] = orjson.dumps(figures)
            if model.watch is not None:
                told[board.drift_key(name)] = orjson.dumps({"model": name, **model.watch.told(at)})
        return told

    def commands(self) -> list[list[Any]]:
        """What came of pages, to be written with the state; call it once for each time that it is written."""
        written = [page_command(request_id, page) for request_id, page in self._pending.items()]
        self._pending = {}
        return written

    def _show(self, at: int, one: Exposure) -> None:
        version = version_of(one)
        if version is None:
            return
        tally = self._tally(one["model"], version)
        if tally is None:
            return
        model = self._models[one["model"]]
        self._count_page(tally, at, one, self._grounds_of(one["model"], version))
        if not one["challenged"]:
            model.latest = version
        if model.watch is not None and model.watch.version == version:
            model.watch.shown()

    @staticmethod
    def _count_page(tally: VersionTally, at: int, one: Exposure, grounds: Grounds) -> None:
        bucket = tally.bucket(at)
        bucket.add("pages")
        for name in ("degraded", "failed"):
            if one[name]:
                bucket.add(name)
        if one["seconds"]:
            add(bucket.seconds, one["seconds"])
        slots, title_ids = slots_of(one)
        for rank, count in enumerate(slots):
            bucket.slot(rank, count)
        for chance in page_of(one)["chances"]:
            if chance is not None:
                bucket.chance(chance)
        tally.show(at, title_ids)
        if grounds.reference is not None and title_ids:
            bucket.add("bits", sum(map(grounds.reference.information_bits, title_ids)))
            bucket.add("titles", len(title_ids))

    def _happen(self, at: int, one: Exposure, page: Page) -> None:
        """Count an outcome of a page, once."""
        seen, mark = page["seen"], f"{one['kind']}:{one['title_id']}"
        if mark in seen or len(seen) >= MOST_OUTCOMES:
            return
        tally = self._tally(page["model"], page["version"])
        if tally is None:
            return
        first = not any(before.startswith(f"{PLAYED}:") for before in seen)
        seen.append(mark)
        self._pending[one["request_id"]] = page
        bucket = tally.bucket(at)
        if one["kind"] == PLAYED:
            self._play(at, one, page, bucket, first=first)
        elif one["kind"] in {FINISHED, THUMBS_UP, THUMBS_DOWN}:
            bucket.add(one["kind"])

    def _play(self, at: int, one: Exposure, page: Page, bucket: Bucket, *, first: bool) -> None:
        bucket.add("plays")
        if type(one["rank"]) is int:
            bucket.rank_play(one["rank"])
        place = page["titles"].index(one["title_id"]) if one["title_id"] in page["titles"] else CUTOFF
        if place < CUTOFF and page["chances"][place] is not None:
            bucket.chance_play(page["chances"][place])
        gain = 1.0 / math.log2(place + 2) if place < CUTOFF else 0.0
        if first:
            bucket.add("played")
            bucket.add("ranked")
            bucket.add("gain", gain)
            bucket.add("gain_squared", gain**2)
            bucket.add("hits", float(place < CUTOFF))
        watch = self._models[page["model"]].watch
        if watch is None or watch.version != page["version"]:
            return
        if first:
            watch.first_played(gain)
        watch.played(at, Play(
            profile_id=one["profile_id"], title_id=str(one["title_id"]), ts=one["ts"], visits=page["visits"],
            gap_s=page["gap_s"], device=page["device"], region=page["region"], rank=one["rank"],
        ))  # fmt: skip

    def _tally(self, name: str, version: str) -> VersionTally | None:
        model = self._models.get(name)
        if model is None:
            if len(self._models) >= MOST_MODELS:
                return None
            model = self._models[name] = _Model()
        tally = model.tallies.get(version)
        if tally is None:
            if len(model.tallies) >= MOST_VERSIONS:
                del model.tallies[min(model.tallies, key=lambda one: model.tallies[one].last)]
            tally = model.tallies[version] = VersionTally()
        return tally

    def _grounds_of(self, name: str, version: str) -> Grounds:
        key = name, version
        found = self._grounds.get(key)
        if found is None:
            try:
                found = read_grounds(self._folder / name / version)
                self._unread.discard(key)
            except ArtifactError as error:
                if key not in self._unread:
                    told = "online: nothing is known of %s %s now, so its figures lack some: %s"
                    _log.warning(told, name, version, error)
                self._unread.add(key)
                found = Grounds()
            while len(self._grounds) >= MOST_VERSIONS:
                oldest = next(iter(self._grounds))
                del self._grounds[oldest]
                self._unread.discard(oldest)
            self._grounds[key] = found
        return found

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned; what `commands` gives belongs to it."""
        return stamped(_KIND, _VERSION, {
            name: {
                "tallies": {version: tally.state() for version, tally in model.tallies.items()},
                "watch": None if model.watch is None else model.watch.state(),
                "latest": model.latest,
            }
            for name, model in self._models.items()
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any], models: Path) -> Self:
        """The reverse of `state`.

        Raises:
            InvalidInput: something else, or another version, wrote it.
        """
        meter = cls(models)
        for name, known in _named(checked(state, _KIND, _VERSION)):
            model = meter._models[name] = _Model(latest=known["latest"])
            model.tallies = {version: VersionTally.from_state(one) for version, one in known["tallies"].items()}
            if known["watch"] is not None:
                reference = meter._grounds_of(name, known["watch"]["version"]).reference
                model.watch = DriftWatch.from_state(known["watch"], reference)
        return meter


def _named(state: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return [(name, known) for name, known in state.items() if isinstance(known, dict)]
