"""Many playback sessions in lockstep: what fetching each next segment at a rung costs in time, buffer and QoE.

Units: time s, buffer s of media, sizes bytes, throughput kbit/s. One compiled loop steps all sessions of a batch; each
has its own trace, title (2..12 rungs, any segment length), QoE and settings.

With the setting PENSIEVE every number is that of the published simulator (Mao et al. 2017), as replaying its logs
shows: a row of the trace holds from the row before it; the trace wraps to its row 1; payload is 95 % of the
throughput; 80 ms are added to each download and do not advance the trace; the buffer is kept at 60 s by sleeping in
steps of 0.5 s; waiting for the first segment counts as rebuffering, and that segment is fetched at rung 1.

Live: the encoder's edge moves in real time; a segment can be fetched once it is whole; latency is the edge less the
playhead. It grows while playback stalls and shrinks while the player catches up.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import HISTORY, LIVE_REMAINING, LOOKAHEAD, RUNGS, Observations
from serve.errors import InvalidInput
from training.bitrate.compiled import compiled
from training.bitrate.qoe import LINEAR, MEASURES, Qoe
from training.bitrate.traces import Trace
from training.bitrate.video import Video

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

DEFAULT_RTT_S: Final = 0.08
BYTES_PER_KBIT: Final = 125.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The rules of a session.

    Attributes:
        max_buffer_s: cap of the buffer; a full player sleeps.
        rtt_s: added to each download; None: the trace's own, or 80 ms where it tells none.
        payload: share of the throughput that is payload, above 0, at most 1.
        sleep_s: a full player sleeps in steps of this; 0: exactly as long as needed.
        noise: each download takes U(1 - noise, 1 + noise) times as long; below 1.
        first_rung: of the first segment (the top rung where there are fewer); None: the policy chooses it.
        random_start: begin at a random row of the trace instead of its first.
        startup_s: media that must be buffered before the first frame is shown; at least one segment.
        startup_weight: QoE per second until the first frame; None: that time counts as rebuffering.
        live_target_s: target latency, and latency at joining (no less than a segment); 0: video on demand.
        latency_weight: QoE per segment and per second of latency above the target.
        catch_up: a live player plays faster by this share while latency is above the target.
        leave_per_s: hazard that the viewer leaves, per second.
        leave_per_rebuffer_s: the same per second of rebuffering.
        sizes_known: whether the policy sees real sizes and qualities of upcoming segments, or estimates (nominal
            bitrate, title's mean quality).
        prior_std: standard deviation of the prior of ln(kbit/s) that the policy is told, drawn around the trace's
            own mean; 0: none is told.
    """

    max_buffer_s: float = 60.0
    rtt_s: float | None = DEFAULT_RTT_S
    payload: float = 0.95
    sleep_s: float = 0.5
    noise: float = 0.0
    first_rung: int | None = 1
    random_start: bool = False
    startup_s: float = 0.0
    startup_weight: float | None = None
    live_target_s: float = 0.0
    latency_weight: float = 0.0
    catch_up: float = 0.0
    leave_per_s: float = 0.0
    leave_per_rebuffer_s: float = 0.0
    sizes_known: bool = True
    prior_std: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and (value >= 0 or field.name.endswith("weight"))):
                self._refuse(field.name, "a finite number of at least 0")
        if self.sleep_s > self.max_buffer_s or self.max_buffer_s == 0:
            self._refuse("max_buffer_s", "above 0 and at least sleep_s")
        if not 0 < self.payload <= 1:
            self._refuse("payload", "above 0, at most 1")
        if self.noise >= 1:
            self._refuse("noise", "below 1")

    def _refuse(self, name: str, expected: str) -> None:
        raise InvalidInput(
            field=f"settings.{name}", got=getattr(self, name), expected=expected, next_step="Correct the setting."
        )


PENSIEVE: Final = Settings()
"""The published simulator's test setting."""

PENSIEVE_TRAINING: Final = Settings(noise=0.1, random_start=True)
"""Its training setting."""

LIVE: Final = Settings(
    max_buffer_s=30.0, sleep_s=0.0, first_rung=None, startup_weight=0.0, live_target_s=6.0, latency_weight=-0.1,
    catch_up=0.05, sizes_known=False,
)  # fmt: skip
"""A low-latency live session."""

_Columns = list[tuple[str, type[np.generic]]]
_SETTINGS: _Columns = [(field.name, np.float64) for field in fields(Settings)]
_QOE: _Columns = [("rebuffer", np.float64), ("rise", np.float64), ("fall", np.float64), ("quality", np.float64)]
_QOE += [("constant", np.float64), ("measure", np.int64)]
_STATE: _Columns = [
    ("trace", np.int64), ("row", np.int64), ("at_s", np.float64), ("video", np.int64), ("qoe", np.int64),
    ("settings", np.int64), ("segment", np.int64), ("segments", np.int64), ("segment_s", np.float64),
    ("rungs", np.int64), ("buffer_s", np.float64), ("latency_s", np.float64), ("wall_s", np.float64),
    ("last_rung", np.int64), ("last_quality", np.float64), ("prior", np.float64), ("playing", np.bool_),
    ("done", np.bool_),
]  # fmt: skip
SESSION: Final = np.dtype(_STATE + _SETTINGS + _QOE, align=True)
"""One session: where it stands, its settings (`rtt_s` resolved; None is NaN elsewhere) and its QoE's weights."""

_OUTCOMES = (
    "delay_s",
    "sleep_s",
    "rebuffer_s",
    "startup_s",
    "reward",
    "quality",
    "switch",
    "rebuffer",
    "wait",
    "latency",
)


_STANDING: Final = ("state", "_throughput_kbps", "_download_s")
"""What of a batch of sessions is theirs alone, one row each."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What fetching one segment brought, for B sessions; all zero for a session that was already done.

    Attributes:
        rung: that was fetched (B,).
        delay_s: duration of the download (B,).
        sleep_s: then waited: buffer full, or (live) the next segment not whole yet (B,).
        rebuffer_s: of both together, time that playback stood still (B,).
        startup_s: of both together, time before the first frame, where that is counted apart (B,).
        reward: QoE of the segment: the sum of the five parts below (B,).
        quality: part of the segment's quality, with the constant (B,).
        switch: part of the change of quality (B,).
        rebuffer: part of rebuffering (B,).
        wait: part of the start-up delay (B,).
        latency: part of live latency above its target (B,).
        done: title at its end, or viewer gone (B,).
        left: viewer gone before the end (B,).
    """

    rung: Integers
    delay_s: Floats
    sleep_s: Floats
    rebuffer_s: Floats
    startup_s: Floats
    reward: Floats
    quality: Floats
    switch: Floats
    rebuffer: Floats
    wait: Floats
    latency: Floats
    done: Flags
    left: Flags


class Traces(NamedTuple):
    """All traces end to end: rows of trace t are `offset[t]` to `offset[t + 1]`."""

    times_s: Floats
    kbps: Floats
    offset: Integers


class Titles(NamedTuple):
    """All titles, padded with zeros to the longest one plus LOOKAHEAD, and to RUNGS.

    quality holds every measure of MEASURES that is used; index by measure, title, segment, rung.
    """

    rungs_kbps: Floats
    segment_bytes: Floats
    quality: Floats
    mean_quality: Floats


@compiled
def download(
    times_s: Floats, kbps: Floats, row: int, at_s: float, size_bytes: float, payload: float
) -> tuple[float, int, float]:
    """Carry `size_bytes` over a trace.

    Args:
        times_s: of the trace (T,).
        kbps: of the trace (T,).
        row: being in the span that ends at this row, 1..T-1.
        at_s: time within the trace, from times_s[row - 1] to times_s[row].
        size_bytes: payload to carry.
        payload: its share of the throughput.

    Returns:
        How long it took, and the new row and time within the trace.
    """
    took_s, carried = 0.0, 0.0
    while True:
        rate = kbps[row] * BYTES_PER_KBIT * payload
        span_s = times_s[row] - at_s
        if carried + rate * span_s > size_bytes:
            last_s = (size_bytes - carried) / rate
            return took_s + last_s, row, at_s + last_s
        carried += rate * span_s
        took_s += span_s
        at_s = times_s[row]
        row += 1
        if row == len(times_s):
            row, at_s = 1, 0.0


@compiled
def idle(times_s: Floats, row: int, at_s: float, for_s: float) -> tuple[int, float]:
    """Let `for_s` pass; the new row and time within the trace."""
    while True:
        span_s = times_s[row] - at_s
        if span_s > for_s:
            return row, at_s + for_s
        for_s -= span_s
        at_s = times_s[row]
        row += 1
        if row == len(times_s):
            row, at_s = 1, 0.0


@compiled
def _play(session: np.void, for_s: float) -> float:
    """Let a player play for `for_s`; the time that it could not."""
    session["wall_s"] += for_s
    if not session["playing"]:
        session["latency_s"] += for_s
        return for_s
    speed = 1.0
    if session["live_target_s"] > 0 and session["latency_s"] > session["live_target_s"]:
        speed += session["catch_up"]
    played_s = min(session["buffer_s"], for_s * speed)
    session["buffer_s"] -= played_s
    session["latency_s"] += for_s - played_s
    stalled_s: float = max(for_s - played_s / speed, 0.0)
    return stalled_s


@compiled
def _step(  # noqa: C901, PLR0915  (one loop over the sessions, read from top to bottom)
    sessions: np.ndarray, traces: Traces, titles: Titles, rungs: Integers, draws: Floats, throughput_kbps: np.ndarray,
    download_s: np.ndarray, numbers: Floats, left: Flags,
) -> None:  # fmt: skip
    for i in range(len(sessions)):
        session = sessions[i]
        if session["done"]:
            rungs[i] = 0
            continue
        first = session["segment"] == 0
        rung = min(max(rungs[i], 0), session["rungs"] - 1)
        if first and not np.isnan(session["first_rung"]):
            rung = min(int(session["first_rung"]), session["rungs"] - 1)
        rungs[i] = rung
        size = titles.segment_bytes[session["video"], session["segment"], rung]
        start, end = traces.offset[session["trace"]], traces.offset[session["trace"] + 1]
        times_s, kbps = traces.times_s[start:end], traces.kbps[start:end]

        delay_s, row, at_s = download(times_s, kbps, session["row"], session["at_s"], size, session["payload"])
        delay_s = (delay_s + session["rtt_s"]) * (1 + session["noise"] * (2 * draws[i, 0] - 1))
        starting = not session["playing"]
        halted_s = _play(session, delay_s)
        session["buffer_s"] += session["segment_s"]
        session["segment"] += 1
        last = session["segment"] == session["segments"]
        waited_s = halted_s if starting else 0.0
        stalled_s = 0.0 if starting else halted_s
        session["playing"] = (
            session["playing"] or last or session["buffer_s"] >= min(session["startup_s"], session["max_buffer_s"])
        )

        sleep_s = 0.0
        over_s = session["buffer_s"] - session["max_buffer_s"]
        if over_s > 0:
            sleep_s = over_s
            if session["sleep_s"] > 0:
                sleep_s = math.ceil(over_s / session["sleep_s"]) * session["sleep_s"]
            _play(session, sleep_s)
        if session["live_target_s"] > 0 and not last:
            until_whole_s = session["segment_s"] - (session["latency_s"] - session["buffer_s"])
            if until_whole_s > 0:
                sleep_s += until_whole_s
                halted_s = _play(session, until_whole_s)
                if session["playing"]:
                    stalled_s += halted_s
                else:
                    waited_s += halted_s
        if sleep_s > 0:
            row, at_s = idle(times_s, row, at_s, sleep_s)
        session["row"], session["at_s"] = row, at_s
        if np.isnan(session["startup_weight"]):
            stalled_s += waited_s
            waited_s = 0.0

        value = titles.quality[session["measure"], session["video"], session["segment"] - 1, rung]
        change = 0.0 if first else value - session["last_quality"]
        quality = session["quality"] * value + session["constant"]
        switch = session["rise"] * max(change, 0.0) + session["fall"] * max(-change, 0.0)
        rebuffer = session["rebuffer"] * stalled_s
        wait = 0.0 if waited_s == 0 else session["startup_weight"] * waited_s
        above_s = session["latency_s"] - session["live_target_s"]
        latency = session["latency_weight"] * above_s if session["live_target_s"] > 0 and above_s > 0 else 0.0
        session["last_quality"] = value
        session["last_rung"] = rung
        for back in range(HISTORY - 1):
            throughput_kbps[i, back] = throughput_kbps[i, back + 1]
            download_s[i, back] = download_s[i, back + 1]
        throughput_kbps[i, HISTORY - 1] = size / BYTES_PER_KBIT / delay_s
        download_s[i, HISTORY - 1] = delay_s

        hazard = session["leave_per_s"] * (delay_s + sleep_s) + session["leave_per_rebuffer_s"] * stalled_s
        left[i] = not last and draws[i, 1] < 1 - math.exp(-hazard)
        session["done"] = last or left[i]
        numbers[0, i], numbers[1, i], numbers[2, i], numbers[3, i] = delay_s, sleep_s, stalled_s, waited_s
        numbers[4, i] = quality + switch + rebuffer + wait + latency
        numbers[5, i], numbers[6, i], numbers[7, i] = quality, switch, rebuffer
        numbers[8, i], numbers[9, i] = wait, latency


@compiled
def _look_ahead(
    sessions: np.ndarray, titles: Titles, rungs_kbps: np.ndarray, segment_bytes: np.ndarray, quality: np.ndarray
) -> None:
    for i in range(len(sessions)):
        session = sessions[i]
        video, measure = session["video"], session["measure"]
        for rung in range(session["rungs"]):
            rungs_kbps[i, rung] = titles.rungs_kbps[video, rung]
            for ahead in range(min(LOOKAHEAD, session["segments"] - session["segment"])):
                segment = session["segment"] + ahead
                if session["sizes_known"] > 0:
                    segment_bytes[i, ahead, rung] = titles.segment_bytes[video, segment, rung]
                    quality[i, ahead, rung] = titles.quality[measure, video, segment, rung]
                else:
                    nominal = titles.rungs_kbps[video, rung] * session["segment_s"]
                    segment_bytes[i, ahead, rung] = nominal * BYTES_PER_KBIT
                    quality[i, ahead, rung] = titles.mean_quality[measure, video, rung]


@compiled
def _future(sessions: np.ndarray, traces: Traces, windows_s: Floats, means: Floats) -> None:
    for i in range(len(sessions)):
        session = sessions[i]
        start, end = traces.offset[session["trace"]], traces.offset[session["trace"] + 1]
        times_s, kbps = traces.times_s[start:end], traces.kbps[start:end]
        row, at_s, passed_s, kbits = session["row"], session["at_s"], 0.0, 0.0
        for window in range(len(windows_s)):
            while True:
                span_s = times_s[row] - at_s
                left_s = windows_s[window] - passed_s
                if span_s > left_s:
                    kbits += kbps[row] * left_s
                    at_s += left_s
                    passed_s = windows_s[window]
                    break
                kbits += kbps[row] * span_s
                passed_s += span_s
                at_s = times_s[row]
                row += 1
                if row == len(times_s):
                    row, at_s = 1, 0.0
            means[i, window] = kbits / passed_s


class Sessions:
    """A batch of B playback sessions in lockstep.

    Without `batch` there is a session for each trace, in order: session i plays traces[i], and takes title, QoE and
    settings i of what is given (modulo their number). With `batch`, each session draws all four at random when it is
    reset, by `seed`.

    Attributes:
        state: the sessions as records of SESSION (B,); read it, change it by `step` and `reset`.
        traces: as given.
        videos: as given.
        qoes: as given.
        settings: as given.
        trace_rows: the traces as the compiled loops read them (`download`, `idle`).
        titles: the titles likewise.

    Raises:
        InvalidInput: nothing to play, or a QoE on VMAF with a title that has none.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        videos: Video | Sequence[Video],
        qoes: Qoe | Sequence[Qoe] = LINEAR,
        settings: Settings | Sequence[Settings] = PENSIEVE,
        *,
        batch: int | None = None,
        seed: int = 0,
    ) -> None:
        self.traces = list(traces)
        self.videos = [videos] if isinstance(videos, Video) else list(videos)
        self.qoes = [qoes] if isinstance(qoes, Qoe) else list(qoes)
        self.settings = [settings] if isinstance(settings, Settings) else list(settings)
        for field in ("traces", "videos", "qoes", "settings"):
            if not getattr(self, field):
                raise InvalidInput(field=field, got=0, expected="at least one", next_step="Give what to simulate.")
        self.trace_rows = _join(self.traces)
        self.titles = _pad(self.videos, [qoe.measure for qoe in self.qoes])
        self._random = np.random.default_rng(seed)
        self._drawn = batch is not None
        self._pools = (
            _table([vars(one) for one in self.settings], _SETTINGS),
            _table([{**vars(one), "measure": MEASURES.index(one.measure)} for one in self.qoes], _QOE),
        )
        self._segments = np.array([len(video.segment_bytes) for video in self.videos])
        self._rungs = np.array([len(video.rungs_kbps) for video in self.videos])
        self._segment_s = np.array([video.segment_s for video in self.videos])
        self._rtt_s = np.array([DEFAULT_RTT_S if one.rtt_s is None else one.rtt_s for one in self.traces])
        self._log_kbps = np.log([trace.mean_kbps for trace in self.traces])
        size = len(self.traces) if batch is None else batch
        self.state = np.zeros(size, SESSION)
        self._throughput_kbps = np.zeros((size, HISTORY), np.float32)
        self._download_s = np.zeros((size, HISTORY), np.float32)
        self.reset()

    def __len__(self) -> int:
        """Sessions."""
        return len(self.state)

    def reset(self, index: Integers | Flags | None = None) -> None:
        """Begin the sessions of `index` (None: all) anew."""
        chosen = np.arange(len(self)) if index is None else np.arange(len(self))[index]
        if not len(chosen):
            return
        trace, video, qoe, setting = (
            self._random.integers(len(pool), size=len(chosen)) if self._drawn else chosen % len(pool)
            for pool in (self.traces, self.videos, self.qoes, self.settings)
        )
        state = np.zeros(len(chosen), SESSION)
        for pool, rows in zip(self._pools, (setting, qoe), strict=True):
            for name in pool.dtype.names or ():
                state[name] = pool[name][rows]
        state["trace"], state["video"], state["qoe"], state["settings"] = trace, video, qoe, setting
        state["segments"], state["rungs"] = self._segments[video], self._rungs[video]
        state["segment_s"] = self._segment_s[video]
        state["rtt_s"] = np.where(np.isnan(state["rtt_s"]), self._rtt_s[trace], state["rtt_s"])
        state["last_rung"] = -1
        state["latency_s"] = np.where(
            state["live_target_s"] > 0, np.maximum(state["live_target_s"], state["segment_s"]), 0.0
        )
        start, end = self.trace_rows.offset[trace], self.trace_rows.offset[trace + 1]
        offset = (self._random.random(len(chosen)) * (end - start - 1)).astype(np.int64)
        state["row"] = np.where(state["random_start"] > 0, 1 + offset, 1)
        state["at_s"] = self.trace_rows.times_s[start + state["row"] - 1]
        state["prior"] = self._log_kbps[trace] + state["prior_std"] * self._random.standard_normal(len(chosen))
        self.state[chosen] = state
        self._throughput_kbps[chosen] = 0
        self._download_s[chosen] = 0

    def branch(self, rows: Integers) -> Self:
        """Sessions of their own that go on from where `rows` (a row may come often) stand; downloads without noise."""
        branches = copy.copy(self)
        branches.__dict__ |= {name: getattr(self, name)[rows] for name in _STANDING}
        branches.__dict__["_random"] = np.random.default_rng(0)
        branches.state["noise"] = 0.0
        return branches

    @classmethod
    def joined(cls, branches: Sequence[Self]) -> Self:
        """Branches of the same sessions, taken at any time, as one batch in their order."""
        whole = copy.copy(branches[0])
        whole.__dict__ |= {
            name: np.concatenate([getattr(branch, name) for branch in branches]) for name in _STANDING
        }  # fmt: skip
        return whole

    def observe(self) -> Observations:
        """What a policy sees now; arrays of its own, that later steps leave alone."""
        state, seen = self.state, Observations.empty(len(self))
        seen.throughput_kbps[:] = self._throughput_kbps
        seen.download_s[:] = self._download_s
        for name in ("buffer_s", "max_buffer_s", "segment_s", "last_rung", "last_quality"):
            getattr(seen, name)[:] = state[name]
        live = state["live_target_s"] > 0
        seen.remaining[:] = np.where(live, LIVE_REMAINING, state["segments"] - state["segment"])
        for column, name in enumerate(("rebuffer", "rise", "fall", "quality")):
            seen.weights[:, column] = state[name]
        seen.prior_log_kbps[:, 0] = np.where(state["prior_std"] > 0, state["prior"], 0)
        seen.prior_log_kbps[:, 1] = state["prior_std"]
        seen.latency_s[:, 0] = np.where(live, state["latency_s"], 0)
        seen.latency_s[:, 1] = state["live_target_s"]
        _look_ahead(state, self.titles, seen.rungs_kbps, seen.segment_bytes, seen.quality)
        return seen

    def step(self, rungs: NDArray[np.integer]) -> Outcome:
        """Fetch the next segment of each session at `rungs` (B,), brought into the ladder's range."""
        fetched = np.array(rungs, np.int64).reshape(len(self))
        numbers = np.zeros((len(_OUTCOMES), len(self)))
        left = np.zeros(len(self), np.bool_)
        draws = self._random.random((len(self), 2))
        _step(
            self.state, self.trace_rows, self.titles, fetched, draws, self._throughput_kbps, self._download_s, numbers,
            left,
        )  # fmt: skip
        return Outcome(
            rung=fetched, **dict(zip(_OUTCOMES, numbers, strict=True)), done=self.state["done"].copy(), left=left
        )

    def future_kbps(self, windows_s: Sequence[float] | Floats) -> Floats:
        """True mean throughput (with overhead) of the next `windows_s` seconds, ascending and above 0 (B, len)."""
        means = np.zeros((len(self), len(windows_s)))
        _future(self.state, self.trace_rows, np.asarray(windows_s, np.float64), means)
        return means


def _table(rows: Sequence[dict[str, object]], columns: _Columns) -> np.ndarray:
    table = np.zeros(len(rows), columns)
    for name, _ in columns:
        table[name] = [np.nan if row[name] is None else row[name] for row in rows]
    return table


def _join(traces: Sequence[Trace]) -> Traces:
    lengths = [len(trace.times_s) for trace in traces]
    return Traces(
        np.concatenate([trace.times_s for trace in traces]),
        np.concatenate([trace.kbps for trace in traces]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def _pad(videos: Sequence[Video], measures: Sequence[str]) -> Titles:
    longest = max(len(video.segment_bytes) for video in videos) + LOOKAHEAD
    titles = Titles(
        np.zeros((len(videos), RUNGS)),
        np.zeros((len(videos), longest, RUNGS)),
        np.zeros((len(MEASURES), len(videos), longest, RUNGS)),
        np.zeros((len(MEASURES), len(videos), RUNGS)),
    )
    for i, video in enumerate(videos):
        segments, rungs = video.segment_bytes.shape
        titles.rungs_kbps[i, :rungs] = video.rungs_kbps
        titles.segment_bytes[i, :segments, :rungs] = video.segment_bytes
        for m, measure in enumerate(MEASURES):
            if measure in measures:
                quality = video.quality(measure)
                titles.quality[m, i, :segments, :rungs] = quality
                titles.mean_quality[m, i, :rungs] = quality.mean(0)
    return titles
