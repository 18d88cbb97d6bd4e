"""What became of playback sessions, as kinds that are counted by arm: failed, rebuffered, low, slow, bad in all.

What is low, slow and bad is known before the session that it judges: it is what the champion's own sessions usually
were in the windows before. So whether a session has a kind doesn't depend on its arm, and kinds can be counted as any
event is (serve.rollout.sequential).

QoE is that of a segment of 4 s in the mean, by published weights: quality is worth so much, a second of stalling costs
so much (Pensieve's linear weights on Mbit/s, Comyco's on VMAF; serve.bitrate.observations). Switches are left out:
records tell how many there were and not how far they went. Sessions whose quality is told as VMAF are held against such
sessions, those of which only the bitrate is known against their like.

Units: time ms unless named, bitrate kbit/s, VMAF 0 to 100.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from serve.bitrate.observations import LINEAR_WEIGHTS, PERCEPTUAL_WEIGHTS
from serve.bitrate.sessions import DEFAULT_SEGMENT_S
from serve.histograms import Histogram, add, dump, load, merge, quantile, size
from serve.rollout.decisions import BAD_QOE, FAILURES, GOOD_QOE, LOW_QUALITY, REBUFFERED, SLOW_STARTS
from serve.telemetry.sessions import LEAST_WAIT_MS
from serve.watchtower.state import checked, stamped

STALLED_SHARE: Final = 0.01
"""Of stalling and playing: a session that stalled for a larger share has rebuffered."""
LEAST: Final = 200
"""Champion's sessions before anything is usual."""
WINDOWS: Final = 60
"""That are remembered; of a minute each, and longer while less is told."""

USUAL: Final[Mapping[str, float]] = {
    "startup_ms": 0.95, "vmaf": 0.1, "kbps": 0.1, "perceptual_qoe": 0.25, "linear_qoe": 0.25,
}  # fmt: skip
"""What is usual, and which of its quantiles parts the usual from the bad: above it for start-up, else below it."""

_KIND: Final = "session-usual"
_VERSION: Final = 1

Record = Mapping[str, Any]
"""A session that is over, as serve.telemetry.records has it."""


class Usual:
    """What the champion's sessions usually are, by the windows before."""

    def __init__(self) -> None:
        self._windows: deque[dict[str, Histogram]] = deque()
        self._together: dict[str, Histogram] = {name: {} for name in USUAL}
        self._values: dict[str, float] = {}

    def limit(self, name: str) -> float | None:
        """What parts the usual from the bad; None until LEAST sessions told it.

        Args:
            name: of USUAL.
        """
        return self._values.get(name)

    def see(self, champion: Mapping[str, Histogram]) -> None:
        """Take in the champion's sessions of a window, once they are judged.

        Args:
            champion: name of USUAL -> values.
        """
        self._remember({name: dict(champion.get(name, {})) for name in USUAL})
        for name, share in USUAL.items():
            if size(self._together[name]) >= LEAST:
                self._values[name] = quantile(self._together[name], share)

    def _remember(self, window: dict[str, Histogram]) -> None:
        """Add a window, and forget the oldest where there are too many."""
        self._windows.append(window)
        for name, values in window.items():
            merge(self._together[name], values)
        if len(self._windows) > WINDOWS:
            for name, values in self._windows.popleft().items():
                left = self._together[name]
                for code, count in values.items():
                    left[code] -= count
                self._together[name] = {code: count for code, count in left.items() if count}

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned."""
        windows = [{name: dump(values) for name, values in window.items()} for window in self._windows]
        return stamped(_KIND, _VERSION, {"windows": windows, "values": self._values})

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Usual":
        """The reverse of `state`.

        Raises:
            InvalidInput: something else, or another version, wrote it.
            ValueError: it holds no histograms.
        """
        state = checked(state, _KIND, _VERSION)
        usual = cls()
        for window in state["windows"]:
            usual._remember({name: load(window.get(name, ())) for name in USUAL})
        usual._values = {name: float(value) for name, value in state["values"].items() if name in USUAL}
        return usual


def has_failed(record: Record) -> bool:
    """Whether a session never showed a picture though somebody waited for it, or was ended by an error."""
    if record["end"] == "failed":
        return True
    return not record["started"] and record["last_ts"] - record["first_ts"] >= LEAST_WAIT_MS


def stalled_share(record: Record) -> float:
    """Stalling as a share of stalling and playing, 0 to 1; 0 where there was neither."""
    whole = record["played_ms"] + record["stall_ms"]
    return float(record["stall_ms"] / whole) if whole > 0 else 0.0


def measures(record: Record) -> dict[str, float]:
    """What a session tells of what is usual: name of USUAL -> value, of those that are known."""
    if not record["started"]:
        return {}
    found = {}
    if record["startup_ms"] is not None:
        found["startup_ms"] = float(record["startup_ms"])
    played_ms, stalled_s = record["played_ms"], record["stall_ms"] / 1000
    if played_ms <= 0:
        return found
    stalled_a_segment_s = stalled_s * DEFAULT_SEGMENT_S / (played_ms / 1000)
    if record["mean_vmaf"] is not None:
        found["vmaf"] = float(record["mean_vmaf"])
        found["perceptual_qoe"] = _qoe(PERCEPTUAL_WEIGHTS, found["vmaf"], stalled_a_segment_s)
    elif record["mean_kbps"]:
        found["kbps"] = float(record["mean_kbps"])
        found["linear_qoe"] = _qoe(LINEAR_WEIGHTS, found["kbps"] / 1000, stalled_a_segment_s)
    return found


def kinds_of(record: Record, usual: Usual) -> Iterable[str]:
    """What a session counts as, by the names of serve.rollout.decisions.SessionCounts.

    Args:
        record: of a session that is over.
        usual: by the sessions before it.
    """
    failed, found = has_failed(record), measures(record)
    if failed:
        yield FAILURES
    if stalled_share(record) > STALLED_SHARE:
        yield REBUFFERED
    if _is_below(found, "vmaf", usual) or _is_below(found, "kbps", usual):
        yield LOW_QUALITY
    slow_ms = usual.limit("startup_ms")
    if slow_ms is not None and found.get("startup_ms", 0.0) > slow_ms:
        yield SLOW_STARTS
    judged = [name for name in ("perceptual_qoe", "linear_qoe") if name in found and usual.limit(name) is not None]
    if failed or any(_is_below(found, name, usual) for name in judged):
        yield BAD_QOE
    elif judged:
        yield GOOD_QOE


def learn(window: dict[str, Histogram], record: Record) -> None:
    """Add a session of the champion's to a window that Usual.see will take in."""
    for name, value in measures(record).items():
        add(window.setdefault(name, {}), value)


def _is_below(found: Mapping[str, float], name: str, usual: Usual) -> bool:
    limit = usual.limit(name)
    return limit is not None and name in found and found[name] < limit


def _qoe(weights: tuple[float, ...], quality: float, stalled_s: float) -> float:
    """QoE of a segment in the mean: weights are of stalling, of switches up and down (left out), and of quality."""
    return weights[0] * stalled_s + weights[3] * quality
