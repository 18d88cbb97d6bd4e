import pytest

from loadtests.closed import drive, measure
from serve.errors import Unavailable

pytestmark = pytest.mark.timed


def get(path):
    return [[("GET", path, None)]]


def test_latency_and_throughput_of_a_known_delay(server):
    result = drive(server, get("/delay?ms=20"), concurrency=4, seconds=1.0, warmup_s=0.2)
    assert result.errors == {}
    assert 20 <= result.latencies[0]["p50_ms"] < 40
    # Little's law: what is open is rate times latency
    assert result.exchanges_rps * result.latencies[0]["mean_ms"] / 1e3 == pytest.approx(4, rel=0.15)


def test_an_exchange_is_timed_request_by_request(server):
    event = ("POST", "/v1/events", '{"events": [{"event_id": "closed", "ts": 1}]}')
    result = drive(server, [[event, ("GET", "/delay?ms=30", None)]], concurrency=2, seconds=0.6, warmup_s=0.1)
    assert result.errors == {}
    assert result.latencies[0]["p50_ms"] < 30 <= result.latencies[1]["p50_ms"]


def test_errors_and_degraded_answers_are_counted(server):
    assert set(drive(server, get("/status/500"), concurrency=2, seconds=0.3, warmup_s=0.1).errors) == {"http_5xx"}
    result = drive(server, get("/degraded"), concurrency=1, seconds=0.3, warmup_s=0.1)
    assert result.degraded == pytest.approx(result.exchanges_rps * 0.3, rel=0.1)


def test_an_answer_that_takes_too_long_is_a_timeout(server):
    result = drive(server, get("/delay?ms=60000"), concurrency=1, seconds=1.6, warmup_s=0.1, timeout_s=0.5)
    assert result.errors.get("timeout", 0) >= 1
    assert result.latencies[0]["p50_ms"] == 0


def test_it_measures_from_a_process_of_its_own(server):
    result = measure(server, get("/delay?ms=10"), concurrency=2, seconds=0.5, warmup_s=0.1)
    assert result.errors == {}
    assert result.latencies[0]["p50_ms"] >= 10
    assert 0 < result.cpu_us_a_request < 2000


def test_nobody_listening_is_a_clear_error(closed_port_url):
    with pytest.raises(Unavailable, match="refused"):
        measure(closed_port_url, get("/"), concurrency=1, seconds=0.2)
