"""Questions to the running service over HTTP, with its refusals in its own words."""

import json
import os
import urllib.error
from collections.abc import Mapping
from typing import Any, Final

from deployments.network import open_url
from deployments.state import service_url
from features.settings import Settings
from serve.arguments import TOKEN_VARIABLE
from serve.errors import InvalidInput, PlayheadError, Unavailable

_TIMEOUT_S: Final = 10.0


def token_header() -> dict[str, str]:
    """What every request brings where the environment has the service's token."""
    token = os.environ.get(TOKEN_VARIABLE)
    return {"Authorization": f"Bearer {token}"} if token else {}


def curl(url: str, body: object = None) -> str:
    """The command that asks the same in a shell; the token stays the shell's variable.

    Args:
        url: what to ask for.
        body: posted as JSON; None: nothing is posted.
    """
    token = f' -H "Authorization: Bearer ${TOKEN_VARIABLE}"' if token_header() else ""
    posted = "" if body is None else f" -d '{json.dumps(body)}'"
    return f"curl '{url}'{token}{posted}"


def ask_named(url: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Ask the service that a person named, else the one that is up on this machine; like `ask`."""
    return ask(url or service_url(Settings.from_env().home), path, body, headers)


def ask(
    url: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    """Ask for something, with the service's token if the environment has it.

    Args:
        url: the service.
        path: what to ask for, with its query.
        body: posted as JSON; None: nothing is posted.
        headers: sent as well.
        timeout_s: the longest wait.

    Raises:
        InvalidInput: the service refused the request; with its words.
        Unavailable: it does not answer.
    """
    posted = None if body is None else json.dumps(body).encode()
    try:
        with open_url(url + path, timeout_s, posted, {**token_header(), **(headers or {})}) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise _refusal(error) from error
    except (OSError, ValueError) as error:
        raise Unavailable(
            field="service",
            got=f"{url}: {getattr(error, 'reason', error)}",
            expected="an answer",
            next_step="Start it with `playhead up`; `playhead status` shows what is up.",
        ) from error
    return found


def _refusal(error: urllib.error.HTTPError) -> PlayheadError:
    """The first thing that a problem document lists; an answer that is none comes from in front of the service."""
    try:
        first = json.loads(error.read())["errors"][0]
        refused = InvalidInput(
            field=first["field"], got=first["got"], expected=first["expected"], next_step=first["next_step"]
        )
        refused.got = first["got"]  # it is quoted already
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return Unavailable(
            field="service", got=f"status {error.code}", expected="an answer", next_step="See `playhead doctor`."
        )
    return refused
