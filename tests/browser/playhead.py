"""The real gateway behind a real HTTP server in a thread, to be stopped and started again on the same port."""

import asyncio
import threading
from typing import Any, Final

import uvicorn

from serve.arguments import Arguments
from tests.conftest import free_port
from tests.serve.gateway.conftest import open_gateway

_DEADLINE_S: Final = 60.0


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, *given: Any, **named: Any) -> None:
        await super().startup(*given, **named)
        self._ready.set()


class PlayheadServer:
    """Playhead on 127.0.0.1.

    Attributes:
        port: where it listens while it runs.
        arguments: of the gateway.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.port = free_port()
        self.arguments = arguments
        self._server: _Server | None = None
        self._thread = threading.Thread()

    def start(self) -> None:
        """Start it and wait until it listens."""
        ready = threading.Event()

        def run() -> None:
            try:
                asyncio.run(self._serve(ready))
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="playhead", daemon=True)
        self._thread.start()
        assert ready.wait(_DEADLINE_S), "Playhead did not start"
        assert self._server is not None, "Playhead could not start"
        assert self._server.started, "Playhead could not listen"

    def stop(self) -> None:
        """Close its port and end it, whatever is still being answered."""
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(_DEADLINE_S)
            assert not self._thread.is_alive()
            self._server = None

    async def _serve(self, ready: threading.Event) -> None:
        entrance = await open_gateway(self.arguments)
        config = uvicorn.Config(
            entrance, port=self.port, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        self._server = _Server(config, ready)
        await self._server.serve()
