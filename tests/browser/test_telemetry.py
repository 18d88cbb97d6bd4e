"""Stock players tell Playhead how playback goes: by CMCD's event mode, and by version 1 with their media requests."""

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from deployments.edge.nginx import Edge
from loadtests.audience.bodies import bodies
from loadtests.audience.sessions import Audience
from serve.gateway.telemetry import _EXAMPLE
from serve.telemetry.cmcd import HEADERS, read
from serve.telemetry.reports import DIMENSIONS, Report, plain
from serve.telemetry.sessions import Session, Sessions
from tests.browser.conftest import HERE, NODE, Browser, OpenEdge, Viewing
from tests.browser.edge import Nginx
from tests.browser.playhead import PlayheadServer
from tests.browser.title import AUDIO_KBPS, DURATION_S, RUNGS_KBPS, Title
from tests.serve.gateway.test_telemetry import logged
from tests.serve.telemetry.test_cmcd import MALFORMED, V1_EXAMPLES, V1_HEADERS
from tests.waiting import wait_for

pytestmark = pytest.mark.timed

STOCK = ("dash", "hls", "shaka")
FORMATS = {"dash": "dash", "hls": "hls", "shaka": "dash"}
MISSING = 7
NETWORK_KBPS = 6000
STALL_KBPS = 60
CONTEXT = {"cdn": "north", "asn": "64500", "region": "eu", "device": "web", "app": "test-1"}


@pytest.fixture(scope="session")
def broken(root: Path, title: Title) -> str:
    """The title without one of its segments in all rungs, its sound's among them."""
    folder = root / "broken"
    folder.mkdir()
    for path in title.folder.iterdir():
        if not path.name.endswith(f"-{MISSING:03d}.m4s"):
            (folder / path.name).symlink_to(path)
    return "broken"


def manifest_of(player: str, folder: str = "title") -> str:
    return f"/{folder}/{'master.m3u8' if FORMATS[player] == 'hls' else 'manifest.mpd'}"


def page_of(player: str, edge: Nginx, **given: object) -> str:
    return f"{edge.url}/page/telemetry-{player}.html?{urlencode({'title': 't42', **given})}"


def target_of(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1/telemetry?{urlencode(CONTEXT)}"


def reports_of_session(playhead: PlayheadServer, name: str) -> list[Report]:
    return [report for report in logged(playhead.arguments) if report.session == name]


def folded(reports: list[Report], name: str) -> Session:
    """What the Watchtower makes of them, in the order of the log."""
    sessions = Sessions(reports[0].received_ms)
    for report in sorted(reports, key=lambda report: report.received_ms):
        for _ in sessions.advance(report.received_ms):
            pass
        sessions.take(report, report.received_ms)
    found = sessions.session(name)
    assert found is not None
    return found


def said(seen: Viewing) -> list[dict[str, Any]]:
    """All CMCD that a player sent, as validate.mjs takes it: of event mode each line."""
    found: list[dict[str, Any]] = []
    for sent in seen.sent:
        query = parse_qs(urlsplit(sent["url"]).query).get("CMCD")
        headers = {name: sent["headers"][name] for name in HEADERS if name in sent["headers"]}
        if sent["method"] == "POST":
            found += [{"mode": "event", "text": line} for line in sent["body"].splitlines()]
        elif query:
            found.append({"mode": "query", "text": query[0]})
        elif headers:
            found.append({"mode": "headers", "headers": headers})
    return found


def verdicts(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert NODE is not None
    done = subprocess.run(
        [NODE, str(HERE / "validate.mjs")],
        input=json.dumps(items),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def malformed_of(item: dict[str, Any]) -> tuple[str, ...]:
    return read(item["headers"].values() if item["mode"] == "headers" else [item["text"]]).malformed


def compare(items: list[dict[str, Any]], exceptions: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """What others call valid Playhead takes whole, and what it calls malformed others call invalid; the verdicts."""
    found = verdicts(items)
    assert len(found) == len(items)
    stricter = [
        item
        for item, verdict in zip(items, found, strict=True)
        if verdict["valid"] and malformed_of(item) and item.get("text") not in (exceptions or {})
    ]
    assert not stricter, stricter
    return found


def check_taken_whole(seen: Viewing) -> None:
    """Every report was accepted whole, whatever other origins' pages need for it having been granted."""
    posts = [sent for sent in seen.sent if sent["method"] == "POST"]
    assert posts, seen.told
    for sent in posts:
        assert sent["status"] == 200, sent
        answer = json.loads(sent["answer"])
        assert (answer["rejected"], answer["malformed"]) == ({}, {}), sent
        assert answer["accepted"] == len(sent["body"].splitlines())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("player", STOCK)
def test_a_stock_player_s_start_switches_stall_and_error_are_known(
    edge: Nginx, playhead: PlayheadServer, browser: Browser, broken: str, player: str
) -> None:
    name = f"events-{player}"
    target = target_of(playhead.port)
    seen = browser.view(
        page_of(
            player,
            edge,
            manifest=manifest_of(player, broken),
            session=name,
            target=target,
            untilS=DURATION_S,
            responses="",
        ),
        kbps=NETWORK_KBPS,
        steps=[("window.session.playedS > 2.5", STALL_KBPS), ("window.session.stalls > 0", NETWORK_KBPS)],
    )
    assert seen.stalls >= 1, seen.told
    check_taken_whole(seen)
    compare(said(seen))

    reports = reports_of_session(playhead, name)
    kept = [report.values for report in reports]
    for sent in said(seen):
        assert sent["mode"] != "event" or plain(read([sent["text"]])) in kept
    assert {"ps", "t", "rr", "e"} <= {report.event for report in reports}
    assert all(report.values["v"] == 2 for report in reports)
    session = folded(reports, name)
    protocol = FORMATS[player]
    assert dict(zip(DIMENSIONS, session.leaf, strict=True)) == CONTEXT | {"title": "t42", "protocol": protocol}
    summary = session.summary()
    first_ms = min(report.values["ts"] for report in reports)
    playing_ms = next(report.values["ts"] for report in reports if report.values.get("sta") == "p")
    assert summary.started, reports
    assert 50 < summary.startup_ms <= playing_ms - first_ms + 50
    assert summary.startup_ms < 5_000
    assert 1 <= summary.stalls <= seen.stalls + 1, reports
    assert 0 < summary.stall_ms < 15_000
    assert 5_000 < summary.played_ms < 25_000
    assert RUNGS_KBPS[0] <= summary.mean_kbps <= RUNGS_KBPS[-1] + 2 * AUDIO_KBPS
    assert summary.switches >= 1
    assert summary.errors >= 1
    assert summary.end == ("vanished" if player == "dash" else "failed")  # dash.js waits for a segment that never comes


@pytest.mark.timeout(60)
def test_shaka_s_release_build_says_no_states_and_is_known_to_have_started(
    edge: Nginx, playhead: PlayheadServer, browser: Browser
) -> None:
    target = target_of(playhead.port)
    seen = browser.view(
        page_of(
            "shaka", edge, manifest=manifest_of("shaka"), session="release", target=target, untilS=2, responses="",
            release="",
        ),
        kbps=NETWORK_KBPS,
    )  # fmt: skip
    check_taken_whole(seen)
    compare(said(seen))
    reports = reports_of_session(playhead, "release")
    assert not any("sta" in report.values for report in reports), "then docs/telemetry.md and this test say too little"
    summary = folded(reports, "release").summary()
    assert summary.started
    assert 50 < summary.startup_ms < 5_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("player", "given"), [("dash", {}), ("hls", {"headers": ""}), ("shaka", {})])
def test_an_edge_passes_on_what_players_say_with_media_requests(
    open_edge: OpenEdge, playhead: PlayheadServer, browser: Browser, player: str, given: dict[str, str]
) -> None:
    name = f"requests-{player}"
    with open_edge(playhead.port, cdn="south") as edge:
        seen = browser.view(
            page_of(player, edge, manifest=manifest_of(player), session=name, untilS=4, **given), kbps=NETWORK_KBPS
        )
        asked = [fetch for fetch in edge.fetches("/title/") if fetch.rung is not None or "seg" in fetch.uri]
    sent = said(seen)
    assert {item["mode"] for item in sent} == {"headers" if given else "query"}
    compare(sent)
    assert not any(malformed_of(item) for item in sent), sent
    wait_for(lambda: len(reports_of_session(playhead, name)) >= len(asked) - 1, 10)
    session = folded(reports_of_session(playhead, name), name)
    assert session.leaf == ("south", "", "", "", "", "t42", FORMATS[player])
    summary = session.summary()
    assert summary.started
    assert 0 < summary.startup_ms < 5_000
    assert summary.stalls <= sum(",bs" in str(item) for item in sent)
    assert summary.mean_kbps >= RUNGS_KBPS[0]


class Silence:
    """A port that takes connections and never answers."""

    def __init__(self, port: int) -> None:
        self._taken: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(64)
        self._listener.settimeout(0)

    def asked(self) -> list[str]:
        """The request lines of what it was asked, the edge's questions among them."""
        lines: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                self._taken.append(self._listener.accept()[0])
        for one in self._taken:
            one.settimeout(0)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                lines.append(one.recv(65_536).split(b"\r\n")[0].decode())
        return lines

    def close(self) -> None:
        """Free the port."""
        for one in (*self._taken, self._listener):
            one.close()


@pytest.fixture
def silent() -> Iterator[list[Silence]]:
    opened: list[Silence] = []
    yield opened
    for one in opened:
        one.close()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("player", STOCK)
def test_playback_goes_on_to_the_end_while_playhead_is_down_and_then_silent(
    open_edge: OpenEdge, playhead: PlayheadServer, browser: Browser, silent: list[Silence], player: str
) -> None:
    name = f"gone-{player}"
    unanswered: list[str] = []

    def go() -> None:
        wait_for(lambda: any(report.values.get("sta") == "p" for report in reports_of_session(playhead, name)), 30)
        playhead.stop()
        time.sleep(1)  # a while of refused connections; there is nothing to poll for
        silent.append(Silence(playhead.port))

    try:
        with open_edge(playhead.port, deadline_ms=Edge.deadline_ms) as edge:
            seen = browser.view(
                page_of(
                    player, edge, manifest=manifest_of(player), session=name, target=target_of(playhead.port),
                    startS=DURATION_S - 12, untilS=DURATION_S - 1, responses="",  # longer than reports are apart
                ),
                kbps=NETWORK_KBPS, meanwhile=go,
            )  # fmt: skip
    finally:
        for one in silent:
            unanswered += one.asked()
            one.close()
        playhead.stop()
        playhead.start()
    assert seen.played_s >= DURATION_S - 1, seen.told
    assert seen.stalls == 0, seen.told
    assert not [line for line in seen.told if line.startswith("uncaught")], seen.told
    assert any(sent["status"] == 200 for sent in seen.sent)
    refused = [sent["body"] for sent in seen.sent if sent["status"] == 0]
    assert refused or any(line.startswith("POST /v1/telemetry") for line in unanswered), "not asked after it had gone"


def test_the_page_for_people_shows_what_the_pages_for_tests_do() -> None:
    document = (HERE.parents[1] / "docs" / "telemetry.md").read_text()
    shown = re.findall(r"```js\n(.*?)```", document, re.DOTALL)
    pages = [" ".join((HERE / "page" / f"telemetry-{player}.js").read_text().split()) for player in STOCK]
    assert len(shown) == 4
    for snippet in shown:
        assert any(" ".join(snippet.split()) in page for page in pages), snippet


EXCEPTIONS = {
    "sid=unquoted,v=2": "sid is a String, which RFC 8941, 3.3.3 quotes (CTA-5004-B, keys: sid)",
    'ot="v",v=2': "ot is a Token, which RFC 8941, 3.3.4 does not quote (CTA-5004-B, keys: ot)",
    "br=(),v=2": "an inner list of integers by object type without one says nothing (CTA-5004-B, keys: br)",
}
"""Malformed to Playhead and valid to the Common Media Library, which tells strings from tokens nowhere."""


@pytest.mark.usefixtures("_needs_browser")
def test_other_validators_agree_with_playhead_s_reading() -> None:
    wrong = [text for text, _ in MALFORMED]
    audience = Audience(seed=1, start_ms=1_790_000_000_000, duration_s=120, peak_concurrency=300, warm_up_s=120)
    sent = [body.content.decode() for body in bodies(list(audience.reports()))]
    ours = [{"mode": "event", "text": line} for text in (_EXAMPLE, *sent) for line in text.splitlines()]
    assert len(ours) > 30
    for item, verdict in zip(ours, compare(ours), strict=True):
        assert verdict["valid"], (item, verdict)

    names = ("cmcd-request", "cmcd-object", "cmcd-status", "cmcd-session")
    items = [{"mode": "query", "text": text} for text, _ in V1_EXAMPLES]
    items += [{"mode": "headers", "headers": dict(zip(names, V1_HEADERS, strict=True))}]
    items += [{"mode": "query", "text": text} for text in wrong]
    items += [{"mode": "query", "text": f"{text},v=2"} for text in wrong]
    found = compare(items, EXCEPTIONS)
    assert sum(verdict["valid"] for verdict in found) >= 5
    texts = {item.get("text"): verdict["valid"] for item, verdict in zip(items, found, strict=True)}
    assert all(texts[text] and read([text]).malformed for text in EXCEPTIONS), "an exception that is none"


def test_a_page_of_another_origin_may_post_through_the_edge(edge: Nginx, playhead: PlayheadServer) -> None:
    origin = {"Origin": "https://player.example", "Access-Control-Request-Headers": "content-type"}
    answer = httpx.options(f"{edge.url}/v1/telemetry", headers=origin)
    assert answer.status_code == 204
    assert "Content-Type" in answer.headers["access-control-allow-headers"]
    answer = httpx.post(
        f"{edge.url}/v1/telemetry", content='e=t,sid="edge"', headers={"Content-Type": "application/cmcd"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers.get_list("access-control-allow-origin") == ["*"]
    assert httpx.get(f"{edge.url}/v1/telemetry").status_code == 403
    assert httpx.get(f"{edge.url}/playhead/telemetry").status_code == 404
    assert [report.event for report in reports_of_session(playhead, "edge")] == ["t"]
