"""Players that speak CMCD: what each said so far, and sessions made of it.

A request carries one measured throughput, and a decision wants several: they are remembered by session id. The memory
is this replica's, bounded, and only ever an improvement: another replica, or a player that was forgotten, is decided
for by its newest sample.

Units: time s, bitrate and throughput kbit/s (CMCD's own are ms and kbit/s).
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from serve.bitrate.observations import HISTORY, RUNGS
from serve.bitrate.sessions import DEFAULT_SEGMENT_S, MAX_BUFFER_S, MAX_KBPS, MIN_KBPS, Session, nearest, read_session
from serve.telemetry.cmcd import Cmcd

VIDEO_TYPES: Final = frozenset({"v", "av"})
AUDIO_TYPE: Final = "a"

_PLAYERS: Final = 20_000
"""Players that are remembered, about 1 KB each."""

_STEP: Final = 1.6
"""From rung to rung of a ladder of which only the top is known; usual ladders have 1.5 to 2."""

_LEAST_KBPS: Final = 150.0

_USED: Final = frozenset({"bl", "mtp", "br", "tb", "d", "ot", "sid", "cid", "dl", "pr", "tbl", "lb", "ltc", "cdn", "?"})
"""Keys that decisions depend on."""


@dataclass(slots=True)
class Player:
    """What one player said.

    Attributes:
        samples: measured throughput and duration of its newest video downloads.
        segment_s: length of its newest video segment; 0 unknown.
        audio_kbps: bitrate of its newest audio segment; 0 unknown, or in the video's.
        mb_kbps: the cap that it was told last; None before.
        etp_kbps: the throughput that it was told last; None before.
        content: the title that it plays, as it names it.
        top_kbps: the highest `tb` that it named of that title; 0 unknown. A player may leave the rungs above `mb` out
            of its `tb`, so a ladder made of one request alone would sink with each guidance.
    """

    samples: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    segment_s: float = 0.0
    audio_kbps: float = 0.0
    mb_kbps: float | None = None
    etp_kbps: float | None = None
    content: str = ""
    top_kbps: float = 0.0

    def hear_top(self, content: str, top_kbps: float | None) -> float | None:
        """The highest top bitrate of the title that the player named so far; None where it named none.

        Args:
            content: the title; another one than before begins anew.
            top_kbps: as its newest request names it; what no ladder holds is left out.
        """
        if content != self.content:
            self.content, self.top_kbps = content, 0.0
        if top_kbps and MIN_KBPS <= top_kbps <= MAX_KBPS:
            self.top_kbps = max(self.top_kbps, top_kbps)
        return self.top_kbps or None


class Players:
    """The players of this replica, the one longest silent leaving first.

    Args:
        limit: how many.
    """

    def __init__(self, limit: int = _PLAYERS) -> None:
        self._limit = limit
        self._known: OrderedDict[str, Player] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def meet(self, session_id: str) -> Player:
        """The player of a session id; a new one where there is no id."""
        if not session_id:
            return Player()
        player = self._known.pop(session_id, None) or Player()
        self._known[session_id] = player
        if len(self._known) > self._limit:
            self._known.popitem(last=False)
        return player


def session_of(
    cmcd: Cmcd, player: Player, *, rungs_kbps: Sequence[float], title_id: str, cdn: str, asn: str
) -> Session:
    """The session of a player that requests a video segment.

    Args:
        cmcd: what it says.
        player: what it said before; the new sample is added.
        rungs_kbps: the ladder, empty where unknown: one is made of `tb`, `lb` and `br`, until the title's is found.
        title_id: the title, or empty: `cid`.
        cdn: the delivery network, or empty: `cdn`.
        asn: the viewer's network, or empty.
    """
    kind = cmcd.text("ot") or "v"
    duration_ms = cmcd.number("d")
    if duration_ms:
        player.segment_s = min(max(duration_ms / 1000, 0.05), 120.0)
    rung_kbps, measured_kbps = cmcd.number("br", kind), cmcd.number("mtp", kind)
    if measured_kbps:
        kbps = min(max(measured_kbps, MIN_KBPS), MAX_KBPS)
        took_s = (player.segment_s or DEFAULT_SEGMENT_S) * (rung_kbps or kbps) / kbps
        player.samples.append((kbps, min(max(took_s, 0.001), 600.0)))
    top_kbps = player.hear_top(cmcd.text("cid"), cmcd.number("tb", kind))
    ladder = rungs_kbps or _ladder(top_kbps, cmcd.number("lb", kind), rung_kbps)
    target_s = _seconds(cmcd.number("tbl", kind))
    session = read_session(
        {
            "session_id": cmcd.text("sid") or None,
            "title_id": title_id or cmcd.text("cid") or None,
            "cdn": cdn or cmcd.text("cdn") or None,
            "asn": asn or None,
            "buffer_s": _buffer_s(cmcd, kind),
            "max_buffer_s": target_s or None,
            "segment_s": player.segment_s or DEFAULT_SEGMENT_S,
            "live_latency_s": _seconds(cmcd.number("ltc")),
            "rungs_kbps": list(ladder) or None,
            "throughput_kbps": [kbps for kbps, _ in player.samples],
            "download_s": [took_s for _, took_s in player.samples],
        }
    )
    session.guessed = not rungs_kbps
    if session.rungs_kbps and rung_kbps:
        session.last_rung = nearest(session.rungs_kbps, rung_kbps)
    for key in cmcd.malformed:
        if key in _USED:
            session.note(f"bad_field:{key}")
    return session


def _ladder(top_kbps: float | None, lowest_kbps: float | None, rung_kbps: float | None) -> list[float]:
    """Rungs from the top down in equal steps, with those that are known among them, ascending."""
    known = {kbps for kbps in (top_kbps, lowest_kbps, rung_kbps) if kbps and MIN_KBPS <= kbps <= MAX_KBPS}
    if not known:
        return []
    least_kbps = lowest_kbps if lowest_kbps in known and lowest_kbps is not None else _LEAST_KBPS
    made, kbps = set(known), max(known) / _STEP
    while kbps > least_kbps and len(made) < RUNGS:
        made.add(kbps)
        kbps /= _STEP
    return sorted(made)


def _buffer_s(cmcd: Cmcd, kind: str) -> float | None:
    """Media in the buffer, in seconds of viewing: what plays faster is gone sooner."""
    buffer_ms = cmcd.number("bl", kind)
    if buffer_ms is None:
        buffer_ms = cmcd.number("dl")
    if buffer_ms is None:
        return 0.0 if cmcd.flag("bs") or cmcd.flag("su") else None
    rate = cmcd.number("pr") or 1.0
    return min(buffer_ms / 1000 / max(rate, 1.0), MAX_BUFFER_S)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else min(milliseconds / 1000, 600.0)
