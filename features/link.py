"""A pipelined connection to Redis or Valkey for the hot path.

One socket per event loop. Every request made in one tick of the loop leaves in one write, and replies come back in
order, so concurrent callers share round trips without knowing of each other. Deadlines belong to callers: a caller that
gave up leaves its place in the queue behind, and its reply is dropped when it comes.

A general client takes about four times as long a read (docs/features.md has the figures); what is left out here is what
the hot path does not need: pools, cluster routing, pub/sub.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

from features.errors import StoreTimeout, StoreUnavailable
from features.layout import command

_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_CONNECT_S: Final = 2.0


class _Request:
    """A request on its way: `replies` fills up to `count`, then the future is done."""

    __slots__ = ("count", "future", "payload", "replies", "sent_s")

    def __init__(self, payload: bytes, count: int, future: "asyncio.Future[list[Any]]", sent_s: float) -> None:
        self.payload = payload
        self.count = count
        self.future = future
        self.sent_s = sent_s
        self.replies: list[Any] = []


class _Wire(asyncio.Protocol):
    """The socket's side: bytes in, replies matched to requests in order."""

    def __init__(self, lost: Callable[["_Wire", str], None]) -> None:
        self.in_flight: deque[_Request] = deque()
        self.closed = False
        self._lost = lost
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases

    def send(self, requests: list[_Request]) -> None:
        """Write requests at once and remember whose replies come next."""
        assert self._transport is not None
        self.in_flight.extend(requests)
        self._transport.write(b"".join([request.payload for request in requests]))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                request = self.in_flight[0]
                request.replies.append(reply)
                if len(request.replies) == request.count:
                    self.in_flight.popleft()
                    if not request.future.done():
                        request.future.set_result(request.replies)
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort(f"not a Redis server's answer: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._lost(self, str(exc or "connection closed"))

    def abort(self, why: str) -> None:
        """Close at once."""
        self.closed = True
        self._lost(self, why)
        if self._transport is not None:
            self._transport.abort()


class StoreLink:
    """A connection that is made when first needed and again after each loss.

    Args:
        url: redis://, rediss:// or unix:// address.
        stall_s: with no reply for so long, the connection is taken for dead and made anew.
        max_in_flight: how many requests may wait; more are refused at once, so that a dead store costs no memory.
    """

    def __init__(self, url: str, *, stall_s: float = 2.0, max_in_flight: int = 10_000) -> None:
        self._address: dict[str, Any] = dict(parse_url(url))
        self._shown = url.rpartition("@")[2]
        self._stall_s = stall_s
        self._max_in_flight = max_in_flight
        self._waiting: list[_Request] = []
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._retry_at_s = 0.0
        self._why = ""

    async def call(self, payload: bytes, *, count: int = 1, deadline_s: float) -> list[Any]:
        """Send commands and wait for their replies.

        Args:
            payload: `count` commands in RESP.
            count: how many replies come.
            deadline_s: longest wait in seconds.

        Returns:
            The replies; a command that the server refused has a hiredis.ReplyError in its place.

        Raises:
            StoreTimeout: no answer within the deadline.
            StoreUnavailable: no connection, or it broke; the commands may or may not have been carried out.
        """
        loop = asyncio.get_running_loop()
        future = self._request(payload, count, loop)
        timer = loop.call_later(deadline_s, self._expire, future, deadline_s)
        try:
            return await future
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Close the connection; the link can be used again."""
        connecting = self._connecting
        if connecting is not None:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
        if self._wire is not None:
            self._wire.abort("closed")
            await asyncio.sleep(0)  # lets the transport close its socket
        self._drop_waiting("closed")

    def _request(self, payload: bytes, count: int, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[list[Any]]":
        now_s = loop.time()
        wire = self._wire
        if wire is not None and wire.in_flight and now_s - wire.in_flight[0].sent_s > self._stall_s:
            wire.abort(f"no reply for {self._stall_s} s")
            wire = None
        if len(self._waiting) + (len(wire.in_flight) if wire is not None else 0) >= self._max_in_flight:
            raise self._unavailable(f"{self._max_in_flight} requests are waiting already")
        if wire is None and self._connecting is None:
            if now_s < self._retry_at_s:
                raise self._unavailable(self._why)
            self._connecting = loop.create_task(self._connect())
        if wire is not None and not self._waiting:
            loop.call_soon(self._flush)
        request = _Request(payload, count, loop.create_future(), now_s)
        self._waiting.append(request)
        return request.future

    def _flush(self) -> None:
        """Send all that waits; what nobody waits for any more is left out."""
        if self._wire is not None:
            waiting = [request for request in self._waiting if not request.future.done()]
            self._waiting = []
            if waiting:
                self._wire.send(waiting)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                wire = await self._open()
        except (OSError, TimeoutError, StoreUnavailable) as error:
            self._failed(str(error) or f"no connection within {_CONNECT_S} s")
        else:
            if wire.closed:
                self._failed("connection closed at once")
            else:
                self._wire = wire
                self._pause_s = _FIRST_PAUSE_S
                self._flush()
        finally:
            self._connecting = None

    async def _open(self) -> _Wire:
        """A connection that is logged in and has its database selected."""
        loop = asyncio.get_running_loop()
        address = self._address
        wire = _Wire(self._lost)
        if "path" in address:
            await loop.create_unix_connection(lambda: wire, address["path"])
        else:
            tls = ssl.create_default_context() if address.get("connection_class") is SSLConnection else None
            host, port = address.get("host", "localhost"), address.get("port", 6379)
            await loop.create_connection(lambda: wire, host, port, ssl=tls)
        greeting = []
        if address.get("password"):
            greeting.append(command("AUTH", address.get("username") or "default", address["password"]))
        if address.get("db"):
            greeting.append(command("SELECT", address["db"]))
        if greeting:
            request = _Request(b"".join(greeting), len(greeting), loop.create_future(), loop.time())
            wire.send([request])
            try:
                replies = await request.future
            except BaseException:
                wire.abort("no login")
                raise
            refused = next((str(reply) for reply in replies if isinstance(reply, hiredis.ReplyError)), None)
            if refused is not None:
                wire.abort(refused)
                raise self._unavailable(refused)
        return wire

    def _lost(self, wire: _Wire, why: str) -> None:
        """A connection is gone: whoever waits for it hears so."""
        if wire is self._wire:
            self._wire = None
            self._why = why
            self._drop_waiting(why)
        for request in wire.in_flight:
            self._refuse(request, why)
        wire.in_flight.clear()

    def _failed(self, why: str) -> None:
        """No connection could be made: all who wait hear so, and the next try is a little later."""
        self._why = why
        self._retry_at_s = asyncio.get_running_loop().time() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._drop_waiting(why)

    def _drop_waiting(self, why: str) -> None:
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._refuse(request, why)

    def _refuse(self, request: _Request, why: str) -> None:
        if not request.future.done():
            request.future.set_exception(self._unavailable(why))

    def _expire(self, future: "asyncio.Future[list[Any]]", deadline_s: float) -> None:
        if not future.done():
            future.set_exception(
                StoreTimeout(
                    field="online store",
                    got=f"no answer from {self._shown} within {1000 * deadline_s:g} ms",
                    expected="an answer",
                    next_step="Look at the store's load; try again.",
                )
            )

    def _unavailable(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(
            field="online store",
            got=f"{self._shown}: {why}",
            expected="a Redis or Valkey server that answers",
            next_step="Start the store or correct REDIS_URL; try again.",
        )
