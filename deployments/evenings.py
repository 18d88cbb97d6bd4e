"""Simulated evenings whose incidents are known, watched once and kept: what detectors' settings are tuned and gated on.

An evening is eight hours of an audience's reports (loadtests.audience), of which the first two are quiet. What it costs
is the reports and the detectors, half a minute to a minute of one core; what is kept is its windows, the signs in them
and what is true, a megabyte or two:

HOME/cache/detectors/FORMAT-SEED-START-VIEWERS.npz
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from loadtests.audience.incidents import Incident, schedule
from loadtests.audience.scoring import LEAST_SHARE, belongs, score
from loadtests.audience.sessions import Audience, Truth
from loadtests.audience.world import DAY_MS, FIRST_DAY_MS, HOUR_MS, World, build_world
from serve.artifacts import replace_file
from serve.telemetry.sessions import Sessions
from serve.telemetry.windows import WIDTH, Leaf, Window
from serve.watchtower import board
from serve.watchtower.alarms import Alarm
from serve.watchtower.slices import SliceWatch
from training.detectors.days import Called, DayScore, Found

VIEWERS: Final = 500
"""At a time at the evening's peak."""
TRAINING_EVENINGS: Final = 5
GATE_EVENINGS: Final = 8
GATE_SEED: Final = 2**20
"""Of the first evening that gates ask about; trainings draw theirs far below."""
TRAINING_SEEDS: Final = 1000
"""Between the first evenings of two trainings' seeds."""
GATE_AFTER_DAYS: Final = 28
"""Evenings of gates are later ones than those of trainings."""

_FORMAT: Final = 1
"""Another one whenever sessions, detectors or the audience make other windows or signs."""
_BEGINS_MS: Final = 14 * HOUR_MS
_LASTS_MS: Final = 8 * HOUR_MS
_INCIDENTS: Final = 7

Integers = NDArray[np.integer[Any]]
Watch = Callable[[str, int, int], None]
"""Told of `evenings`, how many are there and how many are wanted."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows in arrays, a fifth of what they take as they are: W windows, R rows of leaves in them.

    Attributes:
        starts: when each began, UTC ms.
        leaves: all that there are.
        ends: of each window's rows (W,).
        rows: places of leaves (R,).
        counts: of each (R, WIDTH).
    """

    starts: list[int]
    leaves: list[Leaf]
    ends: Integers
    rows: Integers
    counts: Integers

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Self:
        """Put windows into arrays."""
        places: dict[Leaf, int] = {}
        rows = [places.setdefault(leaf, len(places)) for window in windows for leaf in window.counts]
        counts = np.concatenate([np.zeros((0, WIDTH), np.int64), *[window.table() for window in windows]])
        ends = np.cumsum([len(window.counts) for window in windows])
        starts = [window.start_ms for window in windows]
        return cls(starts, list(places), ends, np.array(rows, np.int32), counts.astype(np.int32))

    def __iter__(self) -> Iterator[Window]:
        begin = 0
        for start_ms, end in zip(self.starts, self.ends.tolist(), strict=True):
            part = zip(self.rows[begin:end].tolist(), self.counts[begin:end].tolist(), strict=True)
            yield Window(start_ms, {self.leaves[row]: counts for row, counts in part})
            begin = end


class Evening:
    """An evening that was watched: see training.detectors.days.Day.

    Args:
        name: names it.
        world: where.
        truths: what is true of its incidents.
        windows: what was seen.
        signs: in each window.
    """

    def __init__(
        self, name: str, world: World, truths: Sequence[Truth], windows: Windows, signs: Sequence[bytes]
    ) -> None:
        self._name = name
        self._world = world
        self._truths = truths
        self._windows = windows
        self._signs = signs

    @property
    def name(self) -> str:
        """Names it."""
        return self._name

    def seen(self) -> Iterator[tuple[Window, Sequence[Alarm]]]:
        """Its windows in order, and the signs in each."""
        for window, signs in zip(self._windows, self._signs, strict=True):
            yield window, list(board.load_alarms(signs))

    def score(self, called: Sequence[Called]) -> DayScore:
        """How right some calls are."""
        confirmed = [one for one in called if one.confirmed_ms is not None]
        dropped = [one for one in called if one.confirmed_ms is None]
        harmful = [truth for truth in self._truths if truth.incident.is_outage]

        def is_false(one: Called) -> bool:
            return not any(belongs(one.outage, truth, self._world) for truth in harmful)

        scored = score(
            self._truths, [one.outage for one in confirmed], world=self._world, days=_LASTS_MS / DAY_MS
        )  # fmt: skip
        truths = {truth.incident.incident_id: truth for truth in harmful}
        found = []
        for finding in scored.findings:
            truth = truths[finding.incident_id]
            times = [
                one.confirmed_ms
                for one in confirmed
                if one.confirmed_ms is not None and belongs(one.outage, truth, self._world)
            ]
            found.append(
                Found(
                    incident_id=finding.incident_id, kind=finding.kind, counts=finding.share >= LEAST_SHARE,
                    suspected_s=finding.delay_s, first=finding.top1,
                    confirmed_s=(min(times) - truth.incident.start_ms) / 1000 if times else None,
                )
            )  # fmt: skip
        return DayScore(
            day=self._name, false_alarms=sum(map(is_false, confirmed)), false_suspicions=sum(map(is_false, dropped)),
            found=tuple(found), states={one.outage.outage_id: one.outage.state for one in called},
        )  # fmt: skip

    def dump(self, seed: int) -> bytes:
        """As a file."""
        windows = self._windows
        told = {
            "name": self._name, "seed": seed, "leaves": windows.leaves, "starts": windows.starts,
            "signs": [orjson.loads(one) for one in self._signs], "truths": [asdict(truth) for truth in self._truths],
        }  # fmt: skip
        file = io.BytesIO()
        told_bytes = np.frombuffer(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8)
        np.savez_compressed(file, told=told_bytes, ends=windows.ends, rows=windows.rows, counts=windows.counts)
        return file.getvalue()

    @classmethod
    def load(cls, dumped: bytes) -> Self:
        """The reverse of `dump`.

        Raises:
            ValueError: it is something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(dumped), allow_pickle=False) as found:
                told: dict[str, Any] = json.loads(found["told"].tobytes())
                arrays = [found[name] for name in ("ends", "rows", "counts")]
            windows = Windows(told["starts"], [tuple(leaf) for leaf in told["leaves"]], *arrays)
            truths = [
                Truth(**{**one, "incident": Incident(**one["incident"]), "hurt": tuple(one["hurt"])})
                for one in told["truths"]
            ]
            signs = [orjson.dumps(one) for one in told["signs"]]
            return cls(told["name"], build_world(told["seed"]), truths, windows, signs)
        except (EOFError, KeyError, OSError, TypeError, IndexError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"no evening: {error!r}") from error


def training_evenings(seed: int, cache: Path, told: Watch, *, count: int = TRAINING_EVENINGS) -> list[Evening]:
    """The evenings that a training learns from.

    Args:
        seed: of the training; below GATE_SEED / TRAINING_SEEDS.
        cache: folder of what was watched before.
        told: how far it is.
        count: evenings, 1 to TRAINING_SEEDS.
    """
    return _evenings(100 + TRAINING_SEEDS * seed, 0, count, cache, told)


def gate_evenings(cache: Path, told: Watch, *, count: int = GATE_EVENINGS) -> list[Evening]:
    """Later evenings, of seeds that no training draws; as `training_evenings`."""
    return _evenings(GATE_SEED, GATE_AFTER_DAYS, count, cache, told)


def _evenings(first: int, after_days: int, count: int, cache: Path, told: Watch) -> list[Evening]:
    made = []
    for place in range(count):
        told("evenings", place, count)
        made.append(_evening(first + place, FIRST_DAY_MS + (after_days + place) * DAY_MS + _BEGINS_MS, cache))
    told("evenings", count, count)
    return made


def _evening(seed: int, start_ms: int, cache: Path) -> Evening:
    path = cache / f"{_FORMAT}-{seed}-{start_ms}-{VIEWERS}.npz"
    try:
        return Evening.load(path.read_bytes())
    except (OSError, ValueError):
        evening = watch_evening(seed, start_ms)
    cache.mkdir(parents=True, exist_ok=True)
    replace_file(path, evening.dump(seed))
    return evening


def watch_evening(
    seed: int, start_ms: int, *, viewers: float = VIEWERS, lasts_ms: int = _LASTS_MS, incidents: int = _INCIDENTS,
    quiet_ms: int = 2 * HOUR_MS,
) -> Evening:  # fmt: skip
    """Let an audience report, and watch it.

    Args:
        seed: of the world, its viewers and its incidents.
        start_ms: when the evening begins, UTC ms.
        viewers: at a time at the peak.
        lasts_ms: length.
        incidents: how many are tried to be placed.
        quiet_ms: nothing happens for so long.
    """
    world = build_world(seed)
    days = lasts_ms / DAY_MS
    planned = schedule(seed, days, world=world, start_ms=start_ms, per_day=incidents / days, quiet_ms=quiet_ms)
    audience = Audience(
        seed=seed, start_ms=start_ms, duration_s=lasts_ms / 1000, incidents=planned, world=world,
        peak_concurrency=viewers,
    )  # fmt: skip
    sessions, watch = Sessions(start_ms, closed=lambda _: None), SliceWatch()
    windows: list[Window] = []
    for report in audience.reports():
        windows += sessions.advance(report.received_ms)
        sessions.take(report, report.received_ms)
    windows += sessions.advance(audience.end_ms)
    signs = [board.dump_alarms(watch.see(window)) for window in windows]
    return Evening(f"evening {seed}", world, audience.truths(), Windows.of(windows), signs)
