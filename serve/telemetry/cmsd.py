"""Common Media Server Data, CTA-5006: what an edge tells the player with an answer.

Only the dynamic header is written here. It is a list of structured fields (RFC 8941), one entry a server on the way;
ours is `"playhead";etp=5200;mb=2850;rtt=24`. There is no blank after a semicolon, as some players split there.
"""

import math
from typing import Final

DYNAMIC: Final = "CMSD-Dynamic"
"""Name of the header."""

INTERMEDIARY: Final = "playhead"
"""Names the server that says so."""


def dynamic(*, etp_kbps: float | None = None, mb_kbps: float | None = None, rtt_ms: float | None = None) -> str:
    """The value of CMSD-Dynamic.

    Args:
        etp_kbps: estimated throughput to this player; rounded to 100 kbit/s.
        mb_kbps: the highest bitrate that the player should play; rounded up, so that the rung itself passes.
        rtt_ms: round trip between server and player.
    """
    text = f'"{INTERMEDIARY}"'
    if etp_kbps is not None:
        text += f";etp={max(100, 100 * round(etp_kbps / 100))}"
    if mb_kbps is not None:
        text += f";mb={math.ceil(mb_kbps)}"
    if rtt_ms is not None:
        text += f";rtt={round(rtt_ms)}"
    return text
