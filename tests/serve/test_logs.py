"""Logs: JSON lines, only for notable requests, and never more than some a second."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from serve.logs import NAME, RequestLog, RequestLogSettings, configure


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    logger = configure(stream=stream)
    yield stream
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def answer(log: RequestLog, **given: Any) -> None:
    log.answered(**({"request_id": "r1", "route": "/v1/home", "status": 200, "seconds": 0.001} | given))


@pytest.mark.parametrize(
    ("given", "message", "level"),
    [
        ({"status": 503}, "error", "error"),
        ({"degraded": ("features_timeout",)}, "degraded", "warning"),
        ({"seconds": 0.3}, "slow", "warning"),
    ],
)
def test_notable_requests_are_logged_with_their_id(
    stream: io.StringIO, given: dict[str, Any], message: str, level: str
) -> None:
    answer(RequestLog(RequestLogSettings(slow_ms=250)), **given)
    (line,) = lines(stream)
    assert (line["message"], line["level"], line["request_id"], line["route"]) == (message, level, "r1", "/v1/home")
    assert line["latency_ms"] == pytest.approx(given.get("seconds", 0.001) * 1000)
    assert line.get("degraded", []) == list(given.get("degraded", ()))


@pytest.mark.parametrize(("sample", "expected"), [(0.0, 0), (1.0, 5)])
def test_ordinary_requests_are_logged_as_a_sample(stream: io.StringIO, sample: float, expected: int) -> None:
    log = RequestLog(RequestLogSettings(sample=sample))
    for _ in range(5):
        answer(log)
    assert len(lines(stream)) == expected


def test_an_outage_does_not_flood_the_log(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("serve.logs.time.monotonic", lambda: now[0])
    log = RequestLog(RequestLogSettings(per_second=3))
    for _ in range(1000):
        answer(log, degraded=("features_unavailable",))
    answer(log, status=500)
    assert [line["message"] for line in lines(stream)] == ["degraded"] * 3 + ["error"]
    now[0] = 101.0
    answer(log, degraded=("features_unavailable",))
    assert lines(stream)[-1]["left_out"] == 997


def test_exceptions_carry_their_traceback(stream: io.StringIO) -> None:
    RequestLog(RequestLogSettings()).failed(request_id="r2", route="/v1/home", error=ValueError("the reason"))
    (line,) = lines(stream)
    assert line["request_id"] == "r2"
    assert "the reason" in line["exception"]


def test_values_that_json_does_not_know_are_text(stream: io.StringIO) -> None:
    logging.getLogger(f"{NAME}.part").warning("odd", extra={"value": {1: object}})
    assert "object" in lines(stream)[0]["value"]["1"]
