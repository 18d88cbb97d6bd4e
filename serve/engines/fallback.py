"""An engine with another behind it: what the first can't answer, the second does, and it is logged and counted."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from serve.engines.base import Engine
from serve.errors import Unavailable
from serve.tensors import Array

PAUSE_S: Final = 30.0
"""How long the first engine is left alone after it failed: what fills its memory needs time to go."""

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_counts: Counter[tuple[str, str]] = Counter()


def count_fallback(graph: str, reason: str) -> None:
    """Count one fallback of this process.

    Args:
        graph: `model/graph`.
        reason: `load`, `bind` or `call`.
    """
    with _lock:
        _counts[graph, reason] += 1


def take_fallbacks() -> dict[tuple[str, str], int]:
    """Fallbacks since the last call of this function: (`model/graph`, `load`, `bind` or `call`) -> count."""
    with _lock:
        taken = dict(_counts)
        _counts.clear()
    return taken


class FallbackEngine(Engine):
    """Runs on the first engine; where that is Unavailable, on the second, for this call and for the next PAUSE_S.

    Args:
        name: name of the model, for logs and counts.
        first: the engine to run on.
        second: an engine of the same graph that needs no device.
    """

    def __init__(self, name: str, first: Engine, second: Engine) -> None:
        super().__init__(version=first.version, graph=first.graph, spec=first.spec, device=first.device)
        self._model = name
        self._name = f"{name}/{first.graph}"
        self._first = first
        self._second = second
        self._paused_until = [0.0]  # monotonic; shared with the views that bind() makes

    def sibling(self) -> Engine:
        """Siblings of both."""
        return FallbackEngine(self._model, self._first.sibling(), self._second.sibling())

    def _run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        # Both engines were bound together with this one, so these are the inputs that both still need.
        if time.monotonic() >= self._paused_until[0]:
            try:
                return self._first._run(arrays)  # noqa: SLF001 - checked once, here
            except Unavailable as error:
                self._paused_until[0] = time.monotonic() + PAUSE_S
                _log.warning("engine %s: on %s for %g s: %s", self._name, self._second.device, PAUSE_S, error)
        count_fallback(self._name, "call")
        return self._second._run(arrays)  # noqa: SLF001

    def _place(self, array: Array) -> Any:
        return array.copy()

    def _rebound(self) -> None:
        bound = dict(self._resident)
        self._second = self._second.bind(bound)
        try:
            self._first = self._first.bind(bound)
        except Unavailable as error:  # what is bound does not fit the device: this view never runs there
            self._paused_until = [math.inf]
            _log.warning("engine %s: on %s from now on: %s", self._name, self._second.device, error)
            count_fallback(self._name, "bind")
