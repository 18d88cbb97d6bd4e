"""What browsers must be told before a player on another site may ask (Fetch standard, CORS protocol).

The routes that use it take no cookies and show nothing of anyone, so any site may.
"""

from typing import Final

from fastapi import Request, Response

from serve.telemetry.cmcd import HEADERS

ANY_ORIGIN: Final = {"Access-Control-Allow-Origin": "*"}
_PREFLIGHT: Final = {
    **ANY_ORIGIN,
    "Access-Control-Allow-Methods": "GET, HEAD, POST, OPTIONS",
    "Access-Control-Allow-Headers": ", ".join(["content-type", "authorization", *HEADERS]),
    "Access-Control-Max-Age": "86400",
}


async def preflight(_: Request) -> Response:
    """Any site's player may ask."""
    return Response(status_code=204, headers=_PREFLIGHT)
