"""How viewers play: the discrete events of each, in machine code.

A viewer is a record (VIEWER) with its own clock (`act`, when something happens next) and its own random numbers, so
that what one does depends neither on others nor on how time is cut into steps. A viewer who tries again after a failure
is the same viewer with a new session.

The model: segments of 6 s are fetched one after another; what is fetched follows the smoothed throughput; playback
drains the buffer, stalls when it is empty and goes on once a segment is there. Throughput is lognormal by CDN and
network, with a level for each viewer, slow noise, an evening dip, now and then a collapse, and what incidents do to it.

Units: time ms (`act`, `since`, ...), buffers s of media, throughput and bitrates kbit/s, media kbit.
"""

import math
from typing import Any, Final

import numpy as np

from loadtests.audience.compiled import compiled
from loadtests.audience.incidents import KINDS, MASK_BITS
from loadtests.audience.world import LADDERS

VIEWER: Final = np.dtype(
    [
        ("viewer", "u8"), ("sid", "u8"), ("random", "u8"), ("hurt", "u8"), ("seen", "u8"), ("phase", "i8"),
        ("attempt", "i8"), ("number", "i8"), ("cdn", "i8"), ("asn", "i8"), ("region", "i8"), ("device", "i8"),
        ("app", "i8"), ("title", "i8"), ("protocol", "i8"), ("ladder", "i8"), ("rungs", "i8"), ("rung", "i8"),
        ("flight", "i8"), ("starved", "i8"), ("code", "i8"), ("blame", "i8"), ("counts_stalls", "i8"), ("told", "i8"),
        ("place", "i8"), ("told_msd", "i8"), ("told_bsd", "i8"), ("doomed", "i8"),
        ("act", "f8"), ("report", "f8"), ("interval", "f8"), ("since", "f8"), ("began", "f8"), ("kbps", "f8"),
        ("left_kbit", "f8"), ("segment_ms", "f8"), ("estimate", "f8"), ("buffer", "f8"), ("target", "f8"),
        ("noise", "f8"), ("level", "f8"), ("collapse", "f8"), ("watch", "f8"), ("leave", "f8"), ("stalled", "f8"),
        ("starved_ms", "f8"), ("pause", "f8"), ("seek", "f8"), ("fail", "f8"), ("error", "f8"), ("blocked", "f8"),
        ("skew", "f8"), ("vanishes", "f8"), ("route", "f8"),
    ]
)  # fmt: skip
"""A viewer: who, where, and how playback stands."""

SAID: Final = np.dtype(
    [
        ("at", "f8"), ("place", "i8"), ("sid", "u8"), ("number", "i8"), ("event", "i8"), ("state", "i8"),
        ("code", "i8"), ("kbps", "f8"), ("buffer", "f8"), ("estimate", "f8"), ("msd", "i8"), ("starved", "i8"),
        ("bsd", "i8"), ("starved_ms", "f8"),
    ]
)  # fmt: skip
"""What a player says: when it truly is, the viewer's place, its session, and how playback stands; -1: not said."""

HURT: Final = np.dtype([("place", "i8"), ("sid", "u8"), ("at", "f8")])
"""A session that an incident hurt: the incident's place, and when."""

EVENTS: Final = ("ps", "t", "bc", "e")
STATES: Final = ("s", "p", "r", "a", "k", "e", "f", "q")
CODES: Final = ("NET-1002", "DRM-6007", "MAN-4001", "MEDIA-3015", "APP-9000")

WAITING: Final = 0
LOADING: Final = 1
PLAYING: Final = 2
STALLED: Final = 3
PAUSED: Final = 4
SEEKING: Final = 5
FAILING: Final = 6
OVER: Final = 7
_STATE_OF: Final = np.array([0, 0, 1, 2, 3, 4, 0, 5])

_PS, _T, _BC, _E = 0, 1, 2, 3
_S, _P, _R, _A, _K, _ENDED, _F, _Q = range(8)
_NET, _DRM, _MANIFEST, _MEDIA, _APP = range(5)

_DOWN: Final = KINDS.index("cdn_down")
_SLOW: Final = KINDS.index("cdn_slow")
_CONGESTED: Final = KINDS.index("isp_congestion")
_CRASH: Final = KINDS.index("app_crash")
_ENCODE: Final = KINDS.index("bad_encode")
_REFUSED: Final = KINDS.index("drm_failure")
_BURN: Final = KINDS.index("slow_burn")

SEGMENT_S: Final = 6.0
_QUANTUM_S: Final = 4.0
"""Throughput is drawn again at least so often."""
_START_KBIT: Final = 1500.0
"""Manifests, keys and initialisation before the first segment."""

_START_FAILURE: Final = 0.006
_FATAL: Final = 0.003
"""Of sessions that start: an error that ends them."""
_SURVIVED: Final = 0.003
"""Of sessions that start: an error that playback survives."""
_COLLAPSE: Final = 1 / 650.0
"""Chance at each fetch that somebody walks out of reach of the Wi-Fi."""
_COLLAPSED: Final = 0.02
_RAGGED: Final = 0.9
"""Standard deviation of ln(throughput) that a slow network adds."""
_NOISE: Final = 0.25
_RETRY: Final = 0.6
_ATTEMPTS: Final = 3
_DAMAGED: Final = 0.12
"""Of a damaged encode's segments: those that do harm."""
_UNBEARABLE: Final = 0.3
"""Of those, where they do not decode: those that end playback."""
_BURNS: Final = 0.02
"""Of segments, where something fails more and more: those that end playback, as a share of starts that fail."""
_BETWEEN_PAUSES_MS: Final = 1_200_000.0
_BETWEEN_SEEKS_MS: Final = 1_800_000.0
_START_PATIENCE_MS: Final = 14_000.0
_STALL_PATIENCE_MS: Final = 40_000.0
LONG_START_MS: Final = 4000.0
"""Who waits for longer because of an incident is hurt by it."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_NONE = np.uint64(0)

MOST_AT_ONCE: Final = 16
"""Rows that one viewer's event adds at most: room that `advance` needs."""


@compiled
def mixed(number: Any) -> Any:
    """A number of 64 bits, stirred (the finaliser of splitmix64; Steele et al., OOPSLA 2014)."""
    z = np.uint64(number) + _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@compiled
def _unit_of(number: Any) -> float:
    return float(mixed(number) >> _S11) * (1.0 / 9007199254740992.0)


@compiled
def _draw(v: Any) -> float:
    v.random = v.random + _GOLDEN
    return _unit_of(v.random)


@compiled
def _normal(v: Any) -> float:
    radius = math.sqrt(-2.0 * math.log(1.0 - _draw(v)))
    return radius * math.cos(2.0 * math.pi * _draw(v))


@compiled
def _exponential(v: Any) -> float:
    return -math.log(1.0 - _draw(v))


@compiled
def _matches(v: Any, i: Any) -> bool:
    matches: bool = (
        (i.cdn < 0 or i.cdn == v.cdn)
        and (i.asn < 0 or i.asn == v.asn)
        and (i.region < 0 or i.region == v.region)
        and (i.device < 0 or i.device == v.device)
        and (i.app < 0 or i.app == v.app)
        and (i.title < 0 or i.title == v.title)
        and (i.protocol < 0 or i.protocol == v.protocol)
    )
    return matches


@compiled
def _is_on(v: Any, i: Any, t: float) -> bool:
    """Whether an incident goes on now in a slice that the viewer is in."""
    return bool(t >= i.start and t < i.end and _matches(v, i))


@compiled
def _hits(v: Any, i: Any, t: float) -> bool:
    """Whether an incident hits this viewer now."""
    return bool(_is_on(v, i, t) and _unit_of(v.viewer ^ i.salt) < i.severity)


@compiled
def _look(v: Any, t: float, incidents: Any, exposed: Any) -> None:
    """Count the session once for each incident that it is there for: all (column 0), and those of its slice (1)."""
    for k in range(len(incidents)):
        i = incidents[k]
        if t >= i.start and t < i.end and (v.seen & i.bit) == _NONE:
            v.seen = v.seen | i.bit
            exposed[i.place, 0] += 1
            if _matches(v, i):
                exposed[i.place, 1] += 1


@compiled
def _mark(v: Any, t: float, blame: int, hurt: Any, counts: Any) -> None:
    """The session was hurt by the incident of a place; -1: by none."""
    if blame >= 0:
        bit = np.uint64(1) << np.uint64(blame % MASK_BITS)
        if (v.hurt & bit) == _NONE:
            v.hurt = v.hurt | bit
            row = hurt[counts[1]]
            row.place = blame
            row.sid = v.sid
            row.at = t
            counts[1] += 1


@compiled
def _say(v: Any, t: float, event: int, state: int, code: int, rows: Any, counts: Any) -> None:
    """The player reports; what is said of the start and of a stall that is over is what `told_msd`, `told_bsd` hold."""
    buffer = v.buffer
    if v.phase == PLAYING:
        buffer = max(0.0, buffer - (t - v.since) / 1000.0)
    row = rows[counts[0]]
    row.at = t
    row.place = v.place
    row.sid = v.sid
    row.number = v.number
    row.event = event
    row.state = state
    row.code = code
    row.kbps = LADDERS[v.ladder, v.rung]
    row.buffer = buffer
    row.estimate = v.estimate
    row.msd = v.told_msd
    row.starved = v.starved
    row.bsd = v.told_bsd
    row.starved_ms = v.starved_ms
    v.number += 1
    v.told_msd = v.told_bsd = -1
    counts[0] += 1


@compiled
def _throughput(v: Any, t: float, incidents: Any, log_kbps: Any) -> tuple[float, int]:
    """Kbit/s now, 0 where nothing is delivered; and the place of the incident to blame, -1: none."""
    v.noise = 0.8 * v.noise + _NOISE * _normal(v)
    local = t / 3_600_000.0 + 1.0
    away = (local % 24.0 - 20.5 + 12.0) % 24.0 - 12.0
    level = log_kbps[v.cdn, v.asn] + v.level + v.noise - 0.15 * math.exp(-0.125 * away * away)
    blame = -1
    for k in range(len(incidents)):
        i = incidents[k]
        if i.kind <= _CONGESTED and _hits(v, i, t):
            blame = i.place
            if i.kind == _DOWN:
                return 0.0, blame
            level += math.log(i.magnitude) + _RAGGED * _normal(v)
    if t < v.collapse:
        return math.exp(level) * _COLLAPSED, -1
    return math.exp(level), blame


@compiled
def _over(v: Any, t: float, retry: float) -> None:
    """The session is over; the viewer tries again with a probability, for some times."""
    v.buffer = 0.0
    if v.attempt + 1 < _ATTEMPTS and _draw(v) < retry:
        v.attempt += 1
        v.phase = WAITING
        v.act = t + 2000.0 + 4000.0 * _exponential(v)
        v.watch = max(v.watch, 60.0)
    else:
        v.phase = OVER


@compiled
def _leave(v: Any, t: float, state: int, rows: Any, counts: Any) -> None:
    """The viewer goes, with a word (ended or quit) or without one; who was kept waiting may come again."""
    if _draw(v) >= v.vanishes:
        _say(v, t, _PS, state, -1, rows, counts)
    _over(v, t, 0.0 if v.phase == PLAYING else 0.5 * _RETRY)


@compiled
def _fail(v: Any, t: float, rows: Any, hurt: Any, counts: Any) -> None:
    """A fatal error, `code`, for which `blame` is to blame."""
    v.doomed = 0
    _mark(v, t, v.blame, hurt, counts)
    _say(v, t, _E, _STATE_OF[v.phase], v.code, rows, counts)
    _say(v, t + 1.0, _PS, _F, -1, rows, counts)
    _over(v, t, _RETRY)


@compiled
def _doom(v: Any, code: int, blame: int) -> None:
    """The session fails now."""
    v.doomed = 1
    v.code = code
    v.blame = blame


@compiled
def _begin(v: Any, t: float, incidents: Any, rows: Any, counts: Any) -> None:
    """A session begins: it will load, or fail."""
    v.sid = mixed(v.viewer + np.uint64(v.attempt) * _GOLDEN)
    v.hurt = v.seen = _NONE
    v.number = v.starved = v.flight = v.told = v.doomed = 0
    v.told_msd = v.told_bsd = -1
    v.buffer = v.starved_ms = v.estimate = v.kbps = v.blocked = v.collapse = 0.0
    v.noise = _NOISE * _normal(v)
    v.rung = min(1, v.rungs - 1)
    v.began = v.since = t
    v.report = t + v.interval
    v.fail = v.error = v.pause = v.seek = math.inf
    v.leave = t + _START_PATIENCE_MS * math.exp(0.5 * _normal(v))
    v.blame = v.code = -1
    v.phase = LOADING
    _say(v, t, _PS, _S, -1, rows, counts)
    wait_ms = 250.0 + 250.0 * _exponential(v)
    if _draw(v) < _START_FAILURE:
        v.code = int(_draw(v) * 4.0)
    else:
        for k in range(len(incidents)):
            i = incidents[k]
            chance = _unit_of(v.sid ^ i.salt)
            if i.kind == _REFUSED and _is_on(v, i, t) and chance < i.severity:
                v.code = _DRM
                v.blame = i.place
            elif i.kind == _BURN and _is_on(v, i, t) and chance < i.magnitude * (t - i.start) / (i.end - i.start):
                v.code = _NET if chance * 1000.0 % 2.0 < 1.0 else _MEDIA
                v.blame = i.place
    if v.code >= 0:
        v.phase = FAILING
        wait_ms += 600.0 + 1500.0 * _exponential(v)
    v.act = t + wait_ms
    v.left_kbit = _START_KBIT + LADDERS[v.ladder, v.rung] * SEGMENT_S * 0.5


@compiled
def _foresee(v: Any, t: float, incidents: Any) -> None:
    """What will become of playback that begins is drawn."""
    ahead_ms = v.watch * 1000.0
    if _draw(v) < _FATAL:
        v.fail = t + ahead_ms * _draw(v)
        v.code = int(_draw(v) * 5.0)
    if _draw(v) < _SURVIVED:
        v.error = t + ahead_ms * _draw(v)
    v.pause = t + _BETWEEN_PAUSES_MS * _exponential(v)
    v.seek = t + _BETWEEN_SEEKS_MS * _exponential(v)
    for k in range(len(incidents)):
        i = incidents[k]
        if i.kind == _CRASH and _is_on(v, i, t) and _unit_of(v.sid ^ i.salt) < i.severity:
            v.fail = t + 2000.0 + 12_000.0 * _exponential(v)
            v.code = _APP
            v.blame = i.place


@compiled
def _stall(v: Any, t: float, rows: Any, counts: Any) -> None:
    v.phase = STALLED
    v.buffer = 0.0
    v.stalled = t
    v.starved += 1
    v.leave = t + _STALL_PATIENCE_MS * math.exp(0.7 * _normal(v))
    _say(v, t, _PS, _R, -1, rows, counts)


@compiled
def _suffer(v: Any, t: float, incidents: Any, rows: Any, hurt: Any, counts: Any) -> None:
    """What a segment does that is damaged, or comes from what is failing more and more."""
    for k in range(len(incidents)):
        i = incidents[k]
        if i.kind == _ENCODE and _hits(v, i, t) and _draw(v) < _DAMAGED:
            if i.magnitude >= 0.5 and _draw(v) < _UNBEARABLE:
                _doom(v, _MEDIA, i.place)
                return
            _mark(v, t, i.place, hurt, counts)
            if i.magnitude >= 0.5:
                _say(v, t, _E, _P, _MEDIA, rows, counts)
                return
            _stall(v, t, rows, counts)
            v.flight = 1
            v.segment_ms = t
            v.left_kbit = max(v.kbps, 300.0) * (2.0 + 6.0 * _draw(v))
            return
        ramp = (t - i.start) / (i.end - i.start)
        if i.kind == _BURN and _is_on(v, i, t) and _draw(v) < _BURNS * i.magnitude * ramp:
            _doom(v, _MEDIA, i.place)
            return


@compiled
def _choose(v: Any) -> int:
    """The next segment's rung: what the smoothed throughput carries, one step up at a time, none while in danger."""
    share = 0.75 if v.buffer > 10.0 else 0.5
    best = 0
    for rung in range(v.rungs):
        if LADDERS[v.ladder, rung] <= share * v.estimate:
            best = rung
    rung = int(v.rung)
    if best > rung:
        return rung + 1 if v.buffer > 8.0 and LADDERS[v.ladder, rung + 1] <= 0.65 * v.estimate else rung
    if best < rung and v.buffer > 14.0 and LADDERS[v.ladder, rung] <= 0.95 * v.estimate:
        return rung
    return best


@compiled
def _segment_done(v: Any, t: float, incidents: Any, rows: Any, hurt: Any, counts: Any) -> None:
    """A segment is there: playback may begin or go on; the next rung is chosen."""
    if v.phase == LOADING:
        measured = v.kbps
    else:
        measured = LADDERS[v.ladder, v.rung] * SEGMENT_S * 1000.0 / max(t - v.segment_ms, 20.0)
    v.estimate = measured if v.estimate <= 0.0 else 0.6 * v.estimate + 0.4 * measured
    v.flight = 0
    v.buffer += SEGMENT_S
    if v.phase != PLAYING:
        if v.phase == LOADING:
            v.told_msd = int(t - v.began)
            _foresee(v, t, incidents)
        elif v.phase == STALLED:
            v.starved_ms += t - v.stalled
            v.told_bsd = int(t - v.stalled)
        v.phase = PLAYING
        v.leave = math.inf
        _say(v, t, _PS, _P, -1, rows, counts)
    _suffer(v, t, incidents, rows, hurt, counts)
    if v.phase == PLAYING and not v.doomed:
        rung = _choose(v)
        if rung != v.rung:
            v.rung = rung
            _say(v, t, _BC, _P, -1, rows, counts)


@compiled
def _starve(v: Any, t: float, blame: int, rows: Any, counts: Any) -> None:
    """Nothing is delivered: the player says so, and gives up in the end."""
    if v.blocked <= 0.0:
        v.blocked = t
    if v.phase != PLAYING:
        if t - v.blocked >= 9000.0 + 6000.0 * _unit_of(v.sid):
            _doom(v, _NET, blame)
    elif not v.told and t - v.blocked >= 5000.0:
        v.told = 1
        _say(v, t, _E, _P, _NET, rows, counts)


@compiled
def _plan(v: Any, t: float, incidents: Any, log_kbps: Any, rows: Any, hurt: Any, counts: Any) -> None:
    """What happens next, while loading, playing, stalled or seeking."""
    if not v.flight and v.phase == PLAYING and v.buffer > v.target - SEGMENT_S:
        v.kbps = 0.0
        step_s = min(v.buffer - (v.target - SEGMENT_S), SEGMENT_S)
    else:
        if not v.flight:
            v.flight = 1
            v.segment_ms = t
            if v.phase != LOADING:
                v.left_kbit = LADDERS[v.ladder, v.rung] * SEGMENT_S * (0.8 + 0.4 * _draw(v))
        if t >= v.collapse and _draw(v) < _COLLAPSE:
            v.collapse = t + 25_000.0 * math.exp(0.5 * _normal(v))
        v.kbps, blame = _throughput(v, t, incidents, log_kbps)
        if v.phase == STALLED or (v.phase == LOADING and t - v.began > LONG_START_MS):
            _mark(v, t, blame, hurt, counts)
        if v.kbps <= 0.0:
            _starve(v, t, blame, rows, counts)
            step_s = 1.0
        else:
            v.blocked = 0.0
            v.told = 0
            step_s = min(v.left_kbit / v.kbps, _QUANTUM_S)
    next_ms = t + step_s * 1000.0
    if v.phase == PLAYING:
        next_ms = min(next_ms, t + min(v.buffer, v.watch) * 1000.0, v.fail, v.error, v.pause, v.seek)
    v.act = max(min(next_ms, v.leave), t + 1.0)


@compiled
def _turn(v: Any, t: float, rows: Any, counts: Any) -> None:
    """Playback stalls, or the viewer pauses or seeks, where it is time."""
    if v.buffer <= 1e-3:
        _stall(v, t, rows, counts)
    elif t >= v.pause:
        v.pause = t + _BETWEEN_PAUSES_MS * _exponential(v)
        v.phase = PAUSED
        v.act = t + 45_000.0 * math.exp(0.9 * _normal(v))
        _say(v, t, _PS, _A, -1, rows, counts)
    elif t >= v.seek:
        v.seek = t + _BETWEEN_SEEKS_MS * _exponential(v)
        v.phase = SEEKING
        v.buffer = 0.0
        v.flight = 0
        v.leave = t + _STALL_PATIENCE_MS * math.exp(0.7 * _normal(v))
        _say(v, t, _PS, _K, -1, rows, counts)


@compiled
def _go_on(v: Any, t: float, incidents: Any, rows: Any, hurt: Any, counts: Any) -> bool:
    """Time has passed while loading, playing, stalled or seeking; whether there is more to fetch."""
    passed_s = (t - v.since) / 1000.0
    v.since = t
    if v.flight:
        v.left_kbit -= v.kbps * passed_s
    state = -1
    if v.phase == PLAYING:
        v.buffer = max(0.0, v.buffer - passed_s)
        v.watch -= passed_s
        if t >= v.fail:
            v.doomed = 1
            return False
        if t >= v.error:
            v.error = math.inf
            _say(v, t, _E, _P, int(_draw(v) * 4.0), rows, counts)
        if v.watch <= 1e-3:
            state = _ENDED if _draw(v) < 0.35 else _Q
    elif t >= v.leave:
        state = _Q
    if state >= 0:
        _leave(v, t, state, rows, counts)
        return False
    if v.flight and v.left_kbit <= 1e-6:
        _segment_done(v, t, incidents, rows, hurt, counts)
    if v.phase == PLAYING and not v.doomed:
        _turn(v, t, rows, counts)
    return bool(v.phase != PAUSED)


@compiled
def _act(v: Any, incidents: Any, log_kbps: Any, rows: Any, hurt: Any, counts: Any) -> None:
    """What is due at `act` happens."""
    t = v.act
    fetches = False
    if v.phase == WAITING:
        _begin(v, t, incidents, rows, counts)
    elif v.phase == FAILING:
        v.doomed = 1
    elif v.phase == PAUSED:
        v.phase = PLAYING
        v.since = t
        v.buffer = v.target
        v.flight = 0
        _say(v, t, _PS, _P, -1, rows, counts)
        fetches = True
    else:
        fetches = _go_on(v, t, incidents, rows, hurt, counts)
    if fetches and not v.doomed:
        _plan(v, t, incidents, log_kbps, rows, hurt, counts)
    if v.doomed:
        _fail(v, t, rows, hurt, counts)


@compiled
def advance(
    viewers: Any, first: int, until_ms: float, incidents: Any, log_kbps: Any, exposed: Any, rows: Any, hurt: Any,
    counts: Any,
) -> int:  # fmt: skip
    """Let viewers do all that they do before a time.

    Args:
        viewers: VIEWER (n,), changed in place.
        first: the first viewer whose turn it is.
        until_ms: when to stop, UTC ms.
        incidents: incidents.RECORD (k,): those that the time touches.
        log_kbps: World.log_kbps.
        exposed: int64 (all incidents, 2), added to: sessions there during each, and those of them in its slice.
        rows: SAID, room for reports; from `counts[0]` on they are written.
        hurt: HURT, room for sessions hurt; from `counts[1]` on they are written.
        counts: int64 (2,), how many are written.

    Returns:
        The viewer whose turn it is once the rows are taken away; n: all are done.
    """
    for place in range(first, len(viewers)):
        v = viewers[place]
        v.place = place
        while v.phase != OVER:
            reports = v.phase != WAITING and v.report <= v.act
            t = v.report if reports else v.act
            if t >= until_ms:
                break
            if counts[0] + MOST_AT_ONCE > len(rows) or counts[1] + MOST_AT_ONCE > len(hurt):
                return place
            if v.phase != WAITING:
                _look(v, t, incidents, exposed)
            if reports:
                v.report += v.interval
                _say(v, t, _T, _STATE_OF[v.phase], -1, rows, counts)
            else:
                _act(v, incidents, log_kbps, rows, hurt, counts)
    return len(viewers)
