"""Changes of outages, told to an address of the operator's: at least once, in order, signed, and again until taken.

POST ADDRESS, JSON: an outage as GET /v1/outages shows it
Playhead-Delivery: the change's id, the same however often it is sent
Playhead-Signature: sha256=HMAC of the body, where there is a secret
"""

import asyncio
import hashlib
import hmac
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import redis

from serve.errors import InvalidInput
from serve.watchtower import board
from serve.watchtower.board import Store
from serve.watchtower.leases import LeaseLost, Leases

ADDRESS_VARIABLE: Final = "PLAYHEAD_OUTAGE_WEBHOOK"
SECRET_VARIABLE: Final = "PLAYHEAD_OUTAGE_WEBHOOK_SECRET"  # noqa: S105 - a name, not a secret

_POSITION: Final = board.state_key(board.WEBHOOK_ROLE)
_DEADLINE_S: Final = 10.0
"""Of a delivery as a whole, up to the answer's headers; the role's lease is renewed meanwhile."""

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_IDLE_S: Final = 0.5
MOST_TRIES: Final = 60
"""Of one change, about an hour; then it is given up, so that later ones are told."""

_AGAIN: Final = frozenset({408, 425, 429})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """Where changes go.

    Attributes:
        address: http or https.
        secret: signs bodies; empty: they are not signed.
    """

    address: str
    secret: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self | None:
        """From the environment; None where no address is set.

        Raises:
            InvalidInput: the address is none.
        """
        address = env.get(ADDRESS_VARIABLE, "")
        if not address:
            return None
        if not _can_be_asked(address):
            raise InvalidInput(
                field=ADDRESS_VARIABLE, got=address,
                expected="an http or https address with a host, no spaces and no line's end",
                next_step="Correct it; where it comes from a file, mind the line's end: $(cat FILE) leaves it out.",
            )  # fmt: skip
        return cls(address=address, secret=env.get(SECRET_VARIABLE, ""))


def _can_be_asked(address: str) -> bool:
    """Whether there may be somebody at an address."""
    try:
        parts, url = urlsplit(address), httpx.URL(address)
        port = parts.port  # a property that raises
    except (ValueError, httpx.InvalidURL):
        return False
    plain = address.isprintable() and " " not in address  # urlsplit itself leaves out a line's end
    return plain and parts.scheme in {"http", "https"} and bool(parts.hostname and url.host) and port != 0


class Webhook:
    """Tells changes, one replica at a time.

    Args:
        store: Redis or Valkey.
        settings: where to.
        owner: names this replica.
    """

    def __init__(self, store: Store, settings: WebhookSettings, owner: str) -> None:
        self._store = store
        self._settings = settings
        self._leases = Leases(store, owner, [board.WEBHOOK_ROLE], counted=False)
        self._tries = 0

    def run(self, stop: threading.Event) -> None:
        """Tell changes until told to stop; whatever goes wrong is logged and waited out."""
        with asyncio.Runner() as runner:
            while not stop.is_set():
                try:
                    pause_s = self.step(runner)
                except LeaseLost:
                    pause_s = _IDLE_S
                except (redis.RedisError, OSError):
                    _log.exception("webhook: the store does not answer, will try again")
                    pause_s = _FIRST_PAUSE_S
                except Exception:  # noqa: BLE001 - nothing ends it unheard
                    _log.exception("webhook: a step failed, will try again")
                    pause_s = _LONGEST_PAUSE_S
                stop.wait(pause_s)
        try:
            self._leases.close()
        except (redis.RedisError, OSError):
            _log.warning("webhook: its lease was left to end by itself")

    def step(self, runner: asyncio.Runner) -> float:
        """Tell the next change, if there is one.

        Args:
            runner: sends it.

        Returns:
            How long to wait for the next step, s.
        """
        self._leases.tick()
        lease = self._leases.held.get(board.WEBHOOK_ROLE)
        if lease is None:
            return _IDLE_S
        position: Any = self._store.get(_POSITION)
        if position is None:  # what was before the webhook was set up is not told
            last: Any = self._store.xrevrange(board.LOG, count=1)
            position = last[0][0] if last else b"0-0"
            self._leases.commit(lease, [["SET", _POSITION, position]])
        found: Any = self._store.xread({board.LOG: position}, count=1)
        if not found:
            return _IDLE_S
        ((name, fields),) = found[0][1]
        with self._leases.renewing():
            why = self._deliver(runner, name.decode(), fields.get(board.CHANGE, b""))
        self._tries += 1
        if why and self._tries < MOST_TRIES:
            _log.warning("webhook: change %s was not taken, will try again: %s", name.decode(), why)
            return float(min(_FIRST_PAUSE_S * 2 ** (self._tries - 1), _LONGEST_PAUSE_S))
        if why:
            _log.error("webhook: change %s is given up: %s", name.decode(), why)
        self._tries = 0
        self._leases.commit(lease, [["SET", _POSITION, name]])
        return 0.0

    def _deliver(self, runner: asyncio.Runner, name: str, body: bytes) -> str:
        """Send one change; why it was not taken, empty where it was (or never will be)."""
        try:
            status = runner.run(self._send(name, body))
        except TimeoutError:
            return f"no answer within {_DEADLINE_S:g} s"
        except Exception as error:  # noqa: BLE001 - no change may hold the others up for ever
            return f"{type(error).__name__}: {error}"
        if status >= 500 or status in _AGAIN:
            return f"HTTP {status}"
        if status >= 300:
            _log.error("webhook: change %s was refused with HTTP %d", name, status)
        return ""

    async def _send(self, name: str, body: bytes) -> int:
        """POST a change; the answer's status. What else the answer holds is not read.

        Raises:
            TimeoutError: there was none before the deadline.
            httpx.HTTPError: nobody can be reached.
        """
        headers = {"Content-Type": "application/json", "Playhead-Delivery": name}
        if self._settings.secret:
            digest = hmac.new(self._settings.secret.encode(), body, hashlib.sha256).hexdigest()
            headers["Playhead-Signature"] = f"sha256={digest}"
        async with (
            asyncio.timeout(_DEADLINE_S),
            httpx.AsyncClient(timeout=None, follow_redirects=False) as client,  # noqa: S113 - a line above
            client.stream("POST", self._settings.address, content=body, headers=headers) as answer,
        ):
            return answer.status_code
