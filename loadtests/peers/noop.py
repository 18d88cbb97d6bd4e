"""The floor: a Serve app that does nothing, behind the same ingress."""

from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response


class Noop:
    """Answers an empty JSON object to every request."""

    async def __call__(self, request: Request) -> Response:
        """The answer, whatever was asked."""
        del request
        return Response(b"{}", media_type="application/json")


def build(args: dict[str, str]) -> Any:
    """The application; it takes no arguments."""
    del args
    return serve.deployment(Noop).options(max_ongoing_requests=64).bind()
