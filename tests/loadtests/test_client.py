import time

import httpx
import pytest

from loadtests.arrivals import poisson_arrivals_s
from loadtests.client import ClientSettings, PlannedRequest, judge_body, run_plan
from loadtests.report import Report
from serve.errors import InvalidInput

pytestmark = pytest.mark.timed


def plan(path, *, rate_rps=100.0, duration_s=1.0, seed=1):
    times_s = poisson_arrivals_s(rate_rps=rate_rps, duration_s=duration_s, seed=seed).tolist()
    return [PlannedRequest(at_s, "one", "GET", path) for at_s in times_s]


def run(server, requests, duration_s=1.0, **settings):
    recording = run_plan(requests, ClientSettings(base_url=server, **settings))
    return Report.of(recording, scenario="test", seed=1, duration_s=duration_s)


def test_latency_is_the_servers_delay(server):
    report = run(server, plan("/delay?ms=50"))
    assert report.errors == {}
    assert 50 <= report.latency.p50_ms < 80
    assert report.latency.count == len(report.outcomes)


def test_requests_leave_on_time_although_answers_are_slow(server):
    """Open loop: 100 requests of 400 ms each still leave within the second, which a waiting client could not do."""
    requests = plan("/delay?ms=400")
    started = time.perf_counter()
    report = run(server, requests)
    assert time.perf_counter() - started < 3
    assert report.errors == {}
    assert 400 <= report.latency.p50_ms < 600
    assert report.generator.send_lag.p50_ms < 50


def test_a_stall_shows_in_the_percentiles(server):
    """The 100th request blocks the server for 1 s: about half of the 2 s of arrivals feel it, not one request alone."""
    report = run(server, plan("/stall", rate_rps=150, duration_s=2.0), duration_s=2.0)
    assert report.errors == {}
    assert report.latency.max_ms > 900
    assert report.latency.p99_ms > 700
    delayed = sum(outcome.latency_ms > 100 for outcome in report.outcomes)
    assert delayed > 0.2 * len(report.outcomes)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/status/503", "http_5xx"), ("/status/422", "http_4xx"), ("/status/302", "http_3xx"), ("/text", "bad_body")],
)
def test_bad_answers_are_counted_by_kind_and_kept_out_of_the_percentiles(server, path, kind):
    requests = plan(path, rate_rps=20)
    report = run(server, requests)
    assert report.errors == {kind: len(requests)}
    assert report.latency.count == 0
    assert report.rps == 0


def test_timeouts_are_errors_that_keep_the_time_they_waited(server):
    requests = [*plan("/delay?ms=1", rate_rps=20), PlannedRequest(1.0, "slow", "GET", "/delay?ms=60000")]
    report = run(server, requests, timeout_s=0.5)
    assert report.errors == {"timeout": 1}
    assert report.by_label["slow"][1] == 1
    assert 450 <= report.latency.max_ms < 1000


def test_nobody_listening_is_counted_as_connect(closed_port_url):
    requests = plan("/", rate_rps=20)
    assert run(closed_port_url, requests).errors == {"connect": len(requests)}


def test_what_exceeds_the_open_requests_is_counted_not_skipped(server):
    requests = plan("/delay?ms=5000", rate_rps=50)
    report = run(server, requests, max_in_flight=5, timeout_s=1.5)
    assert report.errors["overload"] + report.errors["timeout"] == len(requests)
    assert report.errors["timeout"] >= 5
    assert report.latency.count == report.errors["timeout"]


def test_degraded_answers_are_counted(server):
    requests = [*plan("/degraded", rate_rps=20), PlannedRequest(1.0, "fine", "GET", "/delay")]
    report = run(server, requests)
    assert (report.errors, report.degraded) == ({}, len(requests) - 1)


def test_connections_are_kept_alive(server):
    """One request after another on one connection: no new lane is opened while one is free."""
    requests = [PlannedRequest(index * 0.02, "one", "GET", "/delay") for index in range(30)]
    assert run(server, requests, max_in_flight=1).errors.get("connect") is None


def test_a_generator_that_keeps_up_says_so(server):
    report = run(server, plan("/delay?ms=5", rate_rps=30), max_send_lag_ms=200)
    assert report.generator.kept_up
    assert report.generator.reasons == ()
    assert report.generator.cpu_share < 0.85


def test_a_generator_that_cannot_keep_up_says_so(server):
    """20,000 requests a second are more than any Python client sends: the verdict must not blame the service."""
    report = run(server, plan("/delay", rate_rps=20_000, duration_s=0.2), duration_s=0.2, max_in_flight=50)
    assert not report.generator.kept_up
    assert any("left late" in reason for reason in report.generator.reasons)
    assert "do not trust" in report.verdict()


def test_an_answer_is_judged_by_its_body():
    assert judge_body(b"") == ("", False)
    assert judge_body(b'{"degraded": []}') == ("", False)
    assert judge_body(b'{"degraded": ["x"]}') == ("", True)
    assert judge_body(b"[1]") == ("bad_body", False)
    assert judge_body(b"{") == ("bad_body", False)


@pytest.mark.parametrize("wrong", [{"max_in_flight": 0}, {"max_in_flight": 5000}, {"timeout_s": 0}])
def test_settings_that_cannot_be_kept_are_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        ClientSettings(base_url="http://127.0.0.1:1", **wrong)


def test_bodies_arrive_as_json(server):
    body = b'{"events": [{"event_id": "client-1", "ts": 5}]}'
    report = run(server, [PlannedRequest(0.0, "events", "POST", "/v1/events", body)])
    assert report.errors == {}
    assert httpx.get(f"{server}/counts", timeout=5).json()["client-1"] == 1
