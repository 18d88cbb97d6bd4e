"""Structured logs: one JSON object a line, each with the request it belongs to.

Answered requests are only logged when they are notable (an error, degraded, slow) or drawn as a sample, and no more
than some a second of each sort: an outage of the store must not turn into an outage by logging. What was left out is
counted in the next line of its sort.
"""

import logging
import sys
import time
from dataclasses import dataclass
from random import random
from typing import Any, Final, TextIO

import orjson

NAME: Final = "playhead"
PACKAGES: Final = ("serve", "features")
"""Loggers named after modules: parts that know nothing of this one."""

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record and its `extra` fields as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; values that JSON does not know are written as text."""
        line: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def configure(level: str = "INFO", stream: TextIO | None = None) -> logging.Logger:
    """Send Playhead's logs to a stream (default stderr) as JSON; calling it again replaces the stream.

    Returns:
        The logger that all of Playhead's loggers descend from.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in (NAME, *PACKAGES):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        for before in list(logger.handlers):
            logger.removeHandler(before)
        logger.addHandler(handler)
    return logging.getLogger(NAME)


def get(part: str) -> logging.Logger:
    """The logger of one part."""
    return logging.getLogger(f"{NAME}.{part}")


@dataclass(frozen=True, kw_only=True)
class RequestLogSettings:
    """Which answered requests are logged.

    Attributes:
        slow_ms: at least this slow is notable.
        sample: share of all other requests that is logged, 0 to 1.
        ordinary: reasons in `degraded` that are no sign of trouble with the answer.
        per_second: most lines a second of each sort.
    """

    slow_ms: float = 250.0
    sample: float = 0.0
    ordinary: frozenset[str] = frozenset({"unknown_profile", "empty_history", "stale_model"})
    per_second: int = 10


class RequestLog:
    """Writes the notable ones of the answered requests."""

    def __init__(self, settings: RequestLogSettings, logger: logging.Logger | None = None) -> None:
        self._settings = settings
        self._slow_s = settings.slow_ms / 1000
        self._logger = logger or get("requests")
        self._windows: dict[str, list[float]] = {}  # sort -> [second it started, lines written, lines left out]

    def answered(
        self, *, request_id: str, route: str, status: int, seconds: float, degraded: tuple[str, ...] = ()
    ) -> None:
        """Log one answer if it is notable; a fraction of a microsecond if it is not."""
        if status >= 500:
            sort, level = "error", logging.ERROR
        elif degraded and not self._settings.ordinary.issuperset(degraded):
            sort, level = "degraded", logging.WARNING
        elif seconds >= self._slow_s:
            sort, level = "slow", logging.WARNING
        elif self._settings.sample and random() < self._settings.sample:  # noqa: S311 - a sample, not a secret
            sort, level = "sample", logging.INFO
        else:
            return
        left_out = self._admit(sort)
        if left_out is None:
            return
        extra: dict[str, Any] = {
            "request_id": request_id,
            "route": route,
            "status": status,
            "latency_ms": round(seconds * 1000, 3),
        }
        if degraded:
            extra["degraded"] = degraded
        if left_out:
            extra["left_out"] = left_out
        self._logger.log(level, sort, extra=extra)

    def failed(self, *, request_id: str, route: str, error: BaseException) -> None:
        """Log an exception that nobody expected, with its traceback."""
        left_out = self._admit("exception")
        if left_out is not None:
            self._logger.error(
                "exception",
                extra={"request_id": request_id, "route": route, "left_out": left_out},
                exc_info=(type(error), error, error.__traceback__),
            )

    def _admit(self, sort: str) -> int | None:
        """How many lines of this sort were left out since the last one, or None if this one must be left out too."""
        second = float(int(time.monotonic()))
        window = self._windows.setdefault(sort, [second, 0, 0])
        if window[0] != second:
            window[0], window[1] = second, 0
        if window[1] >= self._settings.per_second:
            window[2] += 1
            return None
        window[1] += 1
        left_out, window[2] = int(window[2]), 0
        return left_out
