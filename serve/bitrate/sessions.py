"""Reading what callers say of their sessions, and laying it out as the policy's inputs.

A caller is a player in the middle of a title, so nothing it sends is refused: what is missing, of the wrong type or
absurd is replaced by something safe, and named in `degraded`. Field readers are written by hand: a schema library would
cost more than the decision.

Units: time s, bitrate and throughput kbit/s, sizes bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import (
    HISTORY,
    LINEAR_WEIGHTS,
    LIVE_REMAINING,
    LOOKAHEAD,
    PERCEPTUAL_WEIGHTS,
    RUNGS,
    Observations,
)

BAD_SESSION: Final = "bad_session"
LADDER_CUT: Final = "ladder_cut"

MIN_KBPS: Final = 1.0
MAX_KBPS: Final = 1e7
MAX_BUFFER_S: Final = 3600.0
DEFAULT_BUFFER_S: Final = 60.0
DEFAULT_SEGMENT_S: Final = 4.0

_MAX_LADDER: Final = 1000
_MAX_BYTES: Final = 1e10
_MAX_INDEX: Final = 10**6
_MAX_TEXT: Final = 128
_MAX_WEIGHT: Final = 1000.0
_MIN_DOWNLOAD_S: Final = 1e-3
_MAX_DOWNLOAD_S: Final = 600.0
_MAX_LATENCY_S: Final = 600.0

_CURVE_SHARE: Final = np.log(np.array([60.0, 300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0]) / 4300.0)
_CURVE_VMAF: Final = np.array([1.0, 23.4, 63.7, 76.1, 85.1, 93.3, 100.0])
"""Mean VMAF of the Envivio title's renditions (as published with Comyco), against ln(bitrate / top bitrate)."""

_PADDING: Final = tuple([0.0] * count for count in range(max(HISTORY, RUNGS) + 1))


@dataclass(slots=True)
class Session:
    """One session, readable and safe: every number is finite and within its range.

    Attributes:
        session_id: the caller's name of it, given back.
        rungs_kbps: usable rungs, ascending, at most RUNGS; empty where there is none.
        places: index of each in the caller's order.
        ladder_size: length of the caller's list.
        throughput_kbps: samples, newest last, at most HISTORY.
        download_s: as many durations.
        buffer_s: media in the buffer.
        max_buffer_s: its cap, at least buffer_s.
        segment_s: length of a segment.
        last_rung: index into rungs_kbps, -1 before the first.
        segment_index: the next segment, from 0; -1 unknown.
        remaining: segments still to fetch with the next one; LIVE_REMAINING where unknown.
        segment_bytes: size of upcoming segments by rung, the next first, at most LOOKAHEAD rows; empty: estimate them.
        vmaf: their quality, likewise; empty: estimate it.
        last_vmaf: quality of the segment fetched last; negative: estimate it.
        weights: of the QoE.
        perceptual: whether quality is VMAF, else Mbit/s.
        prior_log_kbps: mean and deviation of ln(kbit/s) expected on this network; deviation 0: unknown.
        latency_s: live latency and its target; 0, 0 for video on demand.
        title_id: the title, or empty.
        cdn: the delivery network, or empty.
        asn: the viewer's network, or empty.
        guessed: whether the ladder is only a guess, to be replaced by the title's.
        simple: whether too little is known to ask the model.
        reasons: what was wrong, by name.
    """

    session_id: str | None = None
    rungs_kbps: Sequence[float] = ()
    places: Sequence[int] = ()
    ladder_size: int = 0
    throughput_kbps: Sequence[float] = ()
    download_s: Sequence[float] = ()
    buffer_s: float = 0.0
    max_buffer_s: float = DEFAULT_BUFFER_S
    segment_s: float = DEFAULT_SEGMENT_S
    last_rung: int = -1
    segment_index: int = -1
    remaining: float = LIVE_REMAINING
    segment_bytes: Sequence[Sequence[float]] = ()
    vmaf: Sequence[Sequence[float]] = ()
    last_vmaf: float = -1.0
    weights: Sequence[float] = LINEAR_WEIGHTS
    perceptual: bool = False
    prior_log_kbps: tuple[float, float] = (0.0, 0.0)
    latency_s: tuple[float, float] = (0.0, 0.0)
    title_id: str = ""
    cdn: str = ""
    asn: str = ""
    guessed: bool = False
    simple: bool = False
    reasons: list[str] = field(default_factory=list)

    def note(self, reason: str, *, simple: bool = False) -> None:
        """Say what was wrong, once; `simple` where the model is no longer to be asked."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.simple = self.simple or simple

    def place(self, rung: int) -> int:
        """Index of a rung in the caller's order; 0 where there is no usable rung."""
        return self.places[rung] if self.places else 0


def read_session(document: object) -> Session:
    """What a caller says of one session; never raises.

    Args:
        document: decoded JSON.
    """
    session = Session()
    if type(document) is not dict:
        session.note(BAD_SESSION, simple=True)
        return session
    session.session_id = _text(session, document, "session_id") or None
    session.title_id = _text(session, document, "title_id")
    session.cdn = _text(session, document, "cdn")
    session.asn = _text(session, document, "asn")
    _text(session, document, "device")
    session.segment_s = _number(session, document, "segment_s", 0.05, 120.0, DEFAULT_SEGMENT_S, needed=True)
    session.buffer_s = _number(session, document, "buffer_s", 0.0, MAX_BUFFER_S, 0.0, needed=True)
    cap_s = _number(session, document, "max_buffer_s", 0.1, MAX_BUFFER_S, DEFAULT_BUFFER_S)
    session.max_buffer_s = max(cap_s, session.buffer_s)
    given = document.get("rungs_kbps")
    _read_ladder(session, given)
    _read_last_rung(session, document, given)
    _read_position(session, document)
    _read_samples(session, document)
    _read_qoe(session, document.get("qoe"))
    session.segment_bytes = _read_rows(session, document, "segment_bytes", 1.0, _MAX_BYTES)
    session.vmaf = _read_rows(session, document, "vmaf", 0.0, 100.0)
    latency_s = _number(session, document, "live_latency_s", 0.0, _MAX_LATENCY_S, 0.0)
    target_s = _number(session, document, "live_target_s", 0.0, _MAX_LATENCY_S, latency_s)
    if latency_s > 0.0:
        session.latency_s = (latency_s, target_s)
    return session


def is_number(value: object) -> bool:
    """Whether decoded JSON is a number; a boolean is none."""
    kind = type(value)
    return kind is float or kind is int


def _number(
    session: Session,
    document: Mapping[str, Any],
    name: str,
    low: float,
    high: float,
    default: float,
    *,
    needed: bool = False,
) -> float:
    value = document.get(name)
    kind = type(value)
    if (kind is float or kind is int) and low <= value <= high:  # type: ignore[operator]  # false for NaN, too
        return value  # type: ignore[return-value]
    if value is not None:
        session.note(f"bad_field:{name}", simple=needed)
    elif needed:
        session.note(f"missing_field:{name}", simple=True)
    return default


def _text(session: Session, document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if type(value) is int and 0 <= value < 2**63:
        return str(value)
    if type(value) is str and 0 < len(value) <= _MAX_TEXT and (value.isascii() or _is_unicode(value)):
        return value
    session.note(f"bad_field:{name}")
    return ""


def _is_unicode(value: str) -> bool:
    """Whether a text can be written as UTF-8: one from escapes may hold half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_ladder(session: Session, given: object) -> None:
    if type(given) is not list or not given:
        session.note("missing_field:rungs_kbps" if given is None else "bad_field:rungs_kbps")
        return
    session.ladder_size = len(given)
    before = MIN_KBPS / 2
    for kbps in given[: RUNGS + 1]:
        kind = type(kbps)
        if not (kind is float or kind is int) or not before < kbps <= MAX_KBPS or kbps < MIN_KBPS:
            break
        before = kbps
    else:
        if len(given) <= RUNGS:  # as nearly all ladders are: usable and ascending
            session.rungs_kbps, session.places = given, range(len(given))
            return
    first: dict[float, int] = {}
    for place, kbps in enumerate(given[:_MAX_LADDER]):
        if is_number(kbps) and MIN_KBPS <= kbps <= MAX_KBPS:
            first.setdefault(float(kbps), place)
        else:
            session.note("bad_field:rungs_kbps")
    ladder = sorted(first)
    if len(ladder) > RUNGS:
        session.note(LADDER_CUT)
        ladder = _cut(ladder)
    if not ladder:
        session.note("bad_field:rungs_kbps")
    session.rungs_kbps, session.places = ladder, [first[kbps] for kbps in ladder]


def _cut(ladder: list[float]) -> list[float]:
    """RUNGS of more rungs: the lowest, the highest, and those nearest to equal steps of the logarithm between them."""
    kept = {0, len(ladder) - 1}
    low, high = math.log(ladder[0]), math.log(ladder[-1])
    for step in range(1, RUNGS - 1):
        wanted = low + (high - low) * step / (RUNGS - 1)
        kept.add(
            min((rung for rung in range(len(ladder)) if rung not in kept), key=lambda rung: _off(ladder, rung, wanted))
        )
    return [ladder[rung] for rung in sorted(kept)]


def nearest(ladder: Sequence[float], kbps: float) -> int:
    """The rung whose bitrate is nearest, by ratio."""
    return min(range(len(ladder)), key=lambda rung: _off(ladder, rung, math.log(kbps)))


def _off(ladder: Sequence[float], rung: int, log_kbps: float) -> float:
    return abs(math.log(ladder[rung]) - log_kbps)


def _read_last_rung(session: Session, document: Mapping[str, Any], given: object) -> None:
    value = document.get("last_rung")
    if value is None or value == -1 or not session.ladder_size:
        return
    if not is_number(value) or not 0 <= value < session.ladder_size or value != int(value):
        session.note("bad_field:last_rung")
        return
    if not session.rungs_kbps:
        return
    if type(session.places) is range:
        session.last_rung = int(value)
        return
    assert type(given) is list
    kbps = given[int(value)]
    if is_number(kbps) and MIN_KBPS <= kbps <= MAX_KBPS:
        session.last_rung = nearest(session.rungs_kbps, kbps)
    else:
        session.note("bad_field:last_rung")


def _read_position(session: Session, document: Mapping[str, Any]) -> None:
    index = _number(session, document, "segment_index", 0, _MAX_INDEX, -1)
    count = _number(session, document, "segment_count", 1, _MAX_INDEX, 0)
    session.segment_index = int(index)
    if count and index >= 0:
        session.remaining = max(1.0, float(int(count) - int(index)))
        if index >= count:
            session.note("bad_field:segment_index")


def _read_samples(session: Session, document: Mapping[str, Any]) -> None:
    kbps, seconds = document.get("throughput_kbps"), document.get("download_s")
    if kbps is None and seconds is None:
        return
    if type(kbps) is not list:
        session.note("missing_field:throughput_kbps" if kbps is None else "bad_field:throughput_kbps", simple=True)
        return
    usable_kbps = [
        value
        for value in kbps[-HISTORY:]
        if (type(value) is float or type(value) is int) and MIN_KBPS <= value <= MAX_KBPS
    ]
    wanted = min(len(kbps), HISTORY)
    if len(usable_kbps) < wanted:
        session.note("bad_field:throughput_kbps", simple=not usable_kbps)
    if type(seconds) is list and len(seconds) == len(kbps) and len(usable_kbps) == wanted:
        usable_s = [
            value
            for value in seconds[-HISTORY:]
            if (type(value) is float or type(value) is int) and _MIN_DOWNLOAD_S <= value <= _MAX_DOWNLOAD_S
        ]
        if len(usable_s) == wanted:
            session.throughput_kbps, session.download_s = usable_kbps, usable_s
            return
    _pair_samples(session, kbps, seconds)


def _pair_samples(session: Session, kbps: list[Any], seconds: object) -> None:
    """Samples of which some cannot be used: the newest belong together; a duration that is missing is estimated."""
    durations: list[Any] = []
    if type(seconds) is list:
        durations = seconds[-HISTORY:]
        if len(seconds) != len(kbps):
            session.note("bad_field:download_s")
    elif kbps:
        session.note("missing_field:download_s" if seconds is None else "bad_field:download_s")
    newest = kbps[-HISTORY:]
    durations = [None] * (len(newest) - len(durations)) + durations[max(0, len(durations) - len(newest)) :]
    pairs = []
    for value, took_s in zip(newest, durations, strict=True):
        if not is_number(value) or not MIN_KBPS <= value <= MAX_KBPS:
            continue
        if is_number(took_s) and _MIN_DOWNLOAD_S <= took_s <= _MAX_DOWNLOAD_S:
            pairs.append((value, took_s))
            continue
        if took_s is not None:
            session.note("bad_field:download_s")
        rung_kbps = session.rungs_kbps[max(session.last_rung, 0)] if session.rungs_kbps else value
        pairs.append((value, min(max(session.segment_s * rung_kbps / value, _MIN_DOWNLOAD_S), _MAX_DOWNLOAD_S)))
    session.throughput_kbps = [value for value, _ in pairs]
    session.download_s = [took_s for _, took_s in pairs]


def _read_qoe(session: Session, given: object) -> None:
    if given is None or given == "linear":
        return
    if given == "perceptual":
        session.weights, session.perceptual = PERCEPTUAL_WEIGHTS, True
        return
    if type(given) is dict:
        weights: list[Any] = [given.get(name) for name in ("rebuffer", "rise", "fall", "quality")]
        measure = given.get("measure", "mbps")
        if (
            all(is_number(weight) and abs(weight) <= _MAX_WEIGHT for weight in weights)
            and weights[0] < 0 < weights[3]
            and measure in {"mbps", "vmaf"}
        ):
            session.weights, session.perceptual = weights, measure == "vmaf"
            return
    session.note("bad_field:qoe")


def _read_rows(
    session: Session, document: Mapping[str, Any], name: str, low: float, high: float
) -> Sequence[Sequence[float]]:
    """Rows of one number a rung in the caller's order, as rows in the order of `rungs_kbps`; empty if unusable."""
    given = document.get(name)
    if given is None:
        return ()
    rows = []
    if type(given) is list and session.rungs_kbps:
        for row in given[:LOOKAHEAD]:
            if type(row) is not list or len(row) != session.ladder_size:
                break
            if type(session.places) is not range:
                row = [row[place] for place in session.places]  # noqa: PLW2901 - put in order
            for value in row:
                kind = type(value)
                if not (kind is float or kind is int) or not low <= value <= high:
                    break
            else:
                rows.append(row)
                continue
            break
        if len(rows) == min(len(given), LOOKAHEAD):
            return rows
    session.note(f"bad_field:{name}")
    return rows


def observe(sessions: Sequence[Session]) -> Observations:
    """The policy's inputs for a batch of sessions with at least one rung each.

    Where sizes or qualities are not given they are estimated: sizes from the nominal bitrate, quality from it, too.

    Args:
        sessions: at least one.
    """
    throughput: list[float] = []
    took: list[float] = []
    ladder: list[float] = []
    scalars: list[float] = []
    for session in sessions:
        samples, durations, rungs = session.throughput_kbps, session.download_s, session.rungs_kbps
        throughput += _PADDING[HISTORY - len(samples)]
        throughput += samples
        took += _PADDING[HISTORY - len(durations)]
        took += durations
        ladder += rungs
        ladder += _PADDING[RUNGS - len(rungs)]
        scalars += (
            session.buffer_s,
            session.max_buffer_s,
            session.segment_s,
            session.last_rung,
            session.remaining,
            *session.weights,
            *session.prior_log_kbps,
            *session.latency_s,
        )
    batch = len(sessions)
    table = np.array(scalars, np.float32).reshape(batch, 13)
    rungs_kbps = np.array(ladder, np.float32).reshape(batch, RUNGS)
    segment_s, remaining = table[:, 2], table[:, 4]
    upcoming = (np.arange(LOOKAHEAD, dtype=np.float32) < remaining[:, None])[:, :, None]  # (B, LOOKAHEAD, 1)
    segment_bytes = (rungs_kbps * (125.0 * segment_s)[:, None])[:, None, :] * upcoming
    quality = (rungs_kbps * np.float32(0.001))[:, None, :] * upcoming
    last = np.maximum(table[:, 3].astype(np.intp), 0)
    last_quality = rungs_kbps[np.arange(batch), last] * np.float32(0.001)
    for line, session in enumerate(sessions):
        if session.perceptual:
            _rate(session, quality[line], upcoming[line])
            rated = quality[line, 0, last[line]] if session.last_vmaf < 0 else session.last_vmaf
            last_quality[line] = rated
        if session.segment_bytes:
            rows = session.segment_bytes[: int(min(session.remaining, LOOKAHEAD))]
            segment_bytes[line, : len(rows), : len(rows[0])] = rows
    return Observations(
        throughput_kbps=np.array(throughput, np.float32).reshape(batch, HISTORY),
        download_s=np.array(took, np.float32).reshape(batch, HISTORY),
        buffer_s=table[:, 0].copy(),
        max_buffer_s=table[:, 1].copy(),
        segment_s=segment_s.copy(),
        last_rung=table[:, 3].copy(),
        last_quality=last_quality * (table[:, 3] >= 0),
        remaining=remaining.copy(),
        rungs_kbps=rungs_kbps,
        segment_bytes=segment_bytes,
        quality=quality,
        weights=table[:, 5:9].copy(),
        prior_log_kbps=table[:, 9:11].copy(),
        latency_s=table[:, 11:13].copy(),
    )


def expected_vmaf(rungs_kbps: Sequence[float]) -> NDArray[np.float64]:
    """VMAF of each rung of a ladder whose quality nobody measured: by its share of the top rung, on a log scale."""
    kbps = np.asarray(rungs_kbps, np.float64)
    vmaf: NDArray[np.float64] = np.interp(np.log(kbps / kbps[-1]), _CURVE_SHARE, _CURVE_VMAF)
    return vmaf


def _rate(session: Session, quality: NDArray[np.float32], upcoming: NDArray[np.bool_]) -> None:
    """Fill one session's quality (LOOKAHEAD, RUNGS) with VMAF."""
    count = len(session.rungs_kbps)
    quality[:, :count] = expected_vmaf(session.rungs_kbps) * upcoming
    if session.vmaf:
        rows = session.vmaf[: int(min(session.remaining, LOOKAHEAD))]
        quality[: len(rows), :count] = rows
