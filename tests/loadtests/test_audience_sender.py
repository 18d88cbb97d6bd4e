import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from urllib.parse import parse_qsl, urlsplit

import pytest

from loadtests.audience.bodies import bodies, body, line
from loadtests.audience.sender import SenderSettings, Sent, send
from loadtests.audience.sessions import Audience
from serve.errors import InvalidInput
from serve.telemetry.reports import Report, context_of, read_lines, read_plain
from tests.waiting import eventually

EVENING = 1_790_000_000_000


@pytest.fixture(scope="module")
def reports():
    audience = Audience(seed=4, start_ms=EVENING, duration_s=60, peak_concurrency=200, warm_up_s=1200)
    return list(islice(audience.reports(), 400))


@pytest.fixture
def collector():
    """A server that reads bodies as Playhead does, and refuses the first requests if told to."""
    taken, statuses = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.pop() if statuses else 200
            given = dict(parse_qsl(urlsplit(self.path).query))
            said = _read(self.headers["Content-Type"], content, given)
            if status == 200:
                taken.append((time.time(), self.path, dict(self.headers), said))
            answer = json.dumps({"accepted": len(said)}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.taken, server.statuses, server.url = taken, statuses, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def _read(content_type, content, given):
    """Values and context of each report of a body, by the service's own readers."""
    if content_type == "application/cmcd":
        said, malformed, left_out = read_lines(content.decode(), 1000)
        assert not any(malformed)
        assert not left_out
        return [(values, context_of(values, given)) for values in said]
    document = json.loads(content)
    given = {**given, **document.get("context", {})}
    read = [read_plain(event) for event in document["events"]]
    assert not any(malformed for _, malformed in read)
    return [(values, context_of(values, given)) for values, _ in read]


def _standard(values):
    return {key: value for key, value in values.items() if not key.startswith("com.playhead-")}


def _plain(values):
    """One text in a list is read as the list of it; numbers stay what they are."""
    return {key: list(value) if isinstance(value, list) else value for key, value in values.items()}


@pytest.mark.parametrize("form", ["cmcd", "json"])
@pytest.mark.parametrize("mixed", [True, False])
def test_the_service_reads_from_a_body_what_was_written_into_it(reports, form, mixed):
    made = list(bodies(reports, form, most=30, mixed=mixed))
    assert sum(one.reports for one in made) == len(reports)
    assert max(one.reports for one in made) <= 30
    got = [pair for one in made for pair in _read(one.content_type, one.content, dict(parse_qsl(one.query)))]
    known = {(one.session, one.values["sn"]): one for one in reports}
    for values, context in got:
        one = known[values["sid"], values["sn"]]
        assert _plain(_standard(values)) == _plain(one.values)
        assert context == one.context
    if not mixed:
        assert not any(b"com.playhead-" in one.content for one in made)
        assert len(made) >= len({tuple(one.context.items()) for one in reports})


def test_a_line_is_as_the_standard_has_it():
    said = {"e": "e", "ec": ["NET-1002"], "sid": "ab", "sta": "p", "br": {"v": 3000}, "v": 2, "sf": "d"}
    assert line(said) == 'br=(3000;v),e=e,ec=("NET-1002"),sf=d,sid="ab",sta=p,v=2'
    one = Report("ab", 5, {"sid": "ab"}, {"region": "eu west", "cdn": "north"})
    assert body([one]).query == "cdn=north&region=eu+west"
    other = Report("cd", 6, {"sid": "cd"}, {"region": "uk"})
    assert b'com.playhead-region="uk"' in body([one, other]).content


@pytest.mark.parametrize("form", ["cmcd", "json"])
async def test_all_reports_arrive_at_their_times_with_clocks_moved_along(reports, collector, form):
    settings = SenderSettings(
        base_url=collector.url, factor=40.0, form=form, tick_s=0.05, headers={"X-Who": "audience"}
    )
    began = time.time()
    sent = await send(reports, settings)
    span_s = (reports[-1].received_ms - reports[0].received_ms) / 1000 / 40
    assert span_s <= time.time() - began < span_s + 5
    assert (sent.reports, sent.accepted, sent.failed) == (len(reports), len(reports), 0)
    assert sent.requests == len(collector.taken)
    assert 0 < sent.worst_lag_s < 5
    got = {
        (values["sid"], values["sn"]): (at, values, context)
        for at, _, _, said in collector.taken
        for values, context in said
    }
    assert len(got) == len({(one.session, one.values["sn"]) for one in reports})
    for one in reports:
        at, values, context = got[one.session, one.values["sn"]]
        assert context == one.context
        due = began + (one.received_ms - reports[0].received_ms) / 1000 / 40
        assert -0.01 <= at - due < 3
        behind_ms = (one.received_ms - one.values["ts"]) / 40
        assert due * 1000 - values["ts"] == pytest.approx(behind_ms, abs=200)
    assert {path.partition("?")[0] for _, path, _, _ in collector.taken} == {"/v1/telemetry"}
    assert all(headers["X-Who"] == "audience" for _, _, headers, _ in collector.taken)


async def test_a_request_that_may_succeed_later_is_tried_again_and_one_that_may_not_is_not(reports, collector):
    settings = SenderSettings(base_url=collector.url, factor=1e6)
    collector.statuses[:] = [503, 429]
    sent = await send(reports[:10], settings)
    assert (sent.requests, sent.accepted, sent.failed) == (1, 10, 0)
    collector.statuses[:] = [422]
    again = await send(reports[:10], settings, sent=sent)
    assert again is sent
    assert (sent.requests, sent.reports, sent.accepted, sent.failed) == (2, 20, 10, 10)


async def test_nobody_there_is_counted_and_raises_nothing(reports, closed_port_url):
    sent = await send(reports[:50], SenderSettings(base_url=closed_port_url, factor=1e6, attempts=2, most=20))
    assert (sent.requests, sent.reports, sent.accepted, sent.failed) == (3, 50, 0, 50)


async def test_sending_can_be_stopped_midway(reports, collector):
    counts = Sent()
    task = asyncio.create_task(send(reports, SenderSettings(base_url=collector.url, tick_s=0.05), sent=counts))
    await eventually(lambda: counts.accepted)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 < counts.accepted < len(reports)


@pytest.mark.parametrize(
    "wrong", [{"factor": 0}, {"tick_s": -1}, {"most": 1001}, {"attempts": 0}, {"most_in_flight": 0}]
)
def test_settings_that_cannot_be_kept_are_refused_by_name(wrong):
    with pytest.raises(InvalidInput) as caught:
        SenderSettings(base_url="http://127.0.0.1", **wrong)
    assert caught.value.field == next(iter(wrong))


def test_reports_that_take_time_to_make_do_not_hold_up_what_is_in_flight(reports, collector):
    collector.statuses += [503, 503]  # so the first is tried again, while the next are made
    made = []

    async def slowly():
        for place, one in enumerate(reports):
            if place == len(reports) - 1:
                await asyncio.sleep(1)
                made.append(time.time())
            yield one

    sent = asyncio.run(send(slowly(), SenderSettings(base_url=collector.url, factor=100, tick_s=0.1)))
    assert (sent.reports, sent.accepted) == (len(reports), len(reports))
    assert sum(at < made[0] for at, *_ in collector.taken) >= 4
