"""The edge by itself: guidance is attached where Playhead gives it, and media is served whatever Playhead does."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deployments.edge.nginx import Edge, render
from serve.errors import InvalidInput
from tests.browser.answers import answering
from tests.browser.conftest import OpenEdge
from tests.browser.edge import Nginx
from tests.browser.playhead import PlayheadServer
from tests.browser.title import RUNGS_KBPS, Title
from tests.conftest import free_port

pytestmark = pytest.mark.timed

CMCD = 'bl=9000,br=950,cid="title",d=2000,dl=9000,mtp=2100,ot=v,sf=d,sid="s1",st=v,tb=3000'
SEGMENT = "/title/seg-2-003.m4s"


def test_playhead_s_guidance_comes_with_the_segment(edge: Nginx, title: Title) -> None:
    answer = httpx.get(edge.url + SEGMENT, params={"CMCD": CMCD})
    assert answer.status_code == 200
    assert answer.content == title.segment(2, 3).read_bytes()
    assert answer.headers["cmsd-dynamic"].startswith('"playhead";')
    assert "CMSD-Dynamic" in answer.headers["access-control-expose-headers"]
    (fetch,) = edge.fetches(SEGMENT)
    assert fetch.mb_kbps is not None
    assert fetch.cmcd == CMCD


def test_guidance_follows_what_the_player_says(edge: Nginx) -> None:
    suggested = []
    for throughput in (300, 20_000):
        told = f'bl=2000,br=500,d=2000,dl=2000,mtp={throughput},ot=v,sid="s{throughput}",tb=3000'
        header = httpx.get(edge.url + SEGMENT, params={"CMCD": told}).headers["cmsd-dynamic"]
        suggested.append(int(header.split(";mb=")[1].split(";")[0]))
    assert suggested[0] < suggested[1]


def test_cmcd_is_passed_on_from_query_and_headers_and_nothing_else_is(open_edge: OpenEdge) -> None:
    with (
        answering(200, {"CMSD-Dynamic": '"playhead";mb=950'}) as playhead,
        open_edge(playhead.port) as nginx,
    ):
        told = {f"CMCD-{kind}": f"{kind}=1" for kind in ("Request", "Object", "Status", "Session")}
        private = {"Cookie": "viewer=81", "Authorization": "Bearer viewer", "Range": "bytes=0-99"}
        answer = httpx.get(nginx.url + SEGMENT + "?CMCD=bl%3D900%2Csu&x=1", headers=told | private)
        assert answer.status_code == 206
        assert answer.headers["cmsd-dynamic"] == '"playhead";mb=950'
        (asked,) = playhead.requests
        path, ladder, rtt_us = asked.path.rsplit("&", 2)
        assert path == "/v1/bitrate/cmsd?CMCD=bl%3D900%2Csu&x=1"
        assert ladder == "rungs_kbps=240,500,950,1700,3000"
        assert 0 < int(rtt_us.removeprefix("rtt_us=")) < 10**7
        assert {name.lower(): value for name, value in told.items()}.items() <= asked.headers.items()
        assert not {"cookie", "authorization", "range"} & asked.headers.keys()
        for unguided in ("/title/manifest.mpd", "/title/master.m3u8"):
            assert "cmsd-dynamic" not in httpx.get(nginx.url + unguided).headers
        assert len(playhead.requests) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 418, 429, 500, 503])
def test_media_flows_whatever_playhead_answers(open_edge: OpenEdge, title: Title, status: int) -> None:
    with (
        answering(status, {"CMSD-Dynamic": '"playhead";mb=1', "Location": "/elsewhere"}) as playhead,
        open_edge(playhead.port) as nginx,
    ):
        answer = httpx.get(nginx.url + SEGMENT)
        assert playhead.requests
        assert answer.status_code == 200
        assert answer.content == title.segment(2, 3).read_bytes()
        assert answer.headers["access-control-allow-origin"] == "*"


def test_media_flows_while_playhead_is_down(open_edge: OpenEdge, title: Title) -> None:
    with open_edge(free_port()) as nginx:
        for number in range(1, 4):
            answer = httpx.get(f"{nginx.url}/title/seg-2-{number:03d}.m4s")
            assert answer.status_code == 200
            assert answer.content == title.segment(2, number).read_bytes()
            assert "cmsd-dynamic" not in answer.headers
        assert httpx.get(f"{nginx.url}/title/seg-2-999.m4s").status_code == 404


def test_media_waits_no_longer_than_the_deadline_for_a_playhead_that_hangs(open_edge: OpenEdge, title: Title) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nothing is ever answered
        port = silent.getsockname()[1]
        with open_edge(port, deadline_ms=200) as nginx:

            def fetch(rung: int) -> float:
                started_s = time.monotonic()
                answer = httpx.get(f"{nginx.url}/title/seg-{rung}-001.m4s", timeout=20)
                assert answer.content == title.segment(rung, 1).read_bytes()
                return time.monotonic() - started_s

            with ThreadPoolExecutor() as pool:
                took_s = list(pool.map(fetch, range(len(RUNGS_KBPS))))
    assert min(took_s) >= 0.2
    assert max(took_s) < 5  # of which 0.2 are the edge's: one request's wait holds up no other


def test_players_reach_decisions_and_nothing_else_of_playhead(edge: Nginx, playhead: PlayheadServer) -> None:
    question = {"segment_s": 2, "buffer_s": 9, "rungs_kbps": RUNGS_KBPS, "throughput_kbps": [2100], "download_s": [1]}
    answer = httpx.post(f"{edge.url}/v1/bitrate", json=question)
    assert answer.status_code == 200
    assert answer.json()["bitrate_kbps"] in RUNGS_KBPS
    assert httpx.get(f"{edge.url}/v1/bitrate").status_code == 403
    assert httpx.get(f"http://127.0.0.1:{playhead.port}/v1/models").status_code == 200
    for path in ("/v1/models", "/metrics", "/v1/bitrate/cmsd", "/playhead/guidance", "/docs"):
        assert httpx.get(edge.url + path).status_code == 404


def test_a_preflight_lets_players_on_other_origins_send_cmcd(edge: Nginx) -> None:
    answer = httpx.options(
        edge.url + SEGMENT,
        headers={"Origin": "https://player.example", "Access-Control-Request-Headers": "cmcd-request"},
    )
    assert answer.status_code == 204
    assert "CMCD-Request" in answer.headers["access-control-allow-headers"]


def test_the_configuration_is_filled_in_whole() -> None:
    text = render(Edge(media="/srv/media", listen="[::]:80", token="t0ken", ladders="/etc/ladders", deadline_ms=50))
    assert "${" not in text
    assert "listen [::]:80;" in text
    assert 'Authorization "Bearer t0ken";' in text
    assert "proxy_read_timeout 50ms;" in text
    assert "include /etc/ladders;" in text
    plain = render(Edge(media="/srv/media"))
    assert 'Authorization "";' in plain
    assert "include" not in plain.split("server {")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"media": "/srv/media; }"},
        {"playhead": "127.0.0.1:8000;"},
        {"listen": "80 default_server"},
        {"access_log": "$uri"},
        {"token": 'a"b'},
        {"deadline_ms": 0},
        {"deadline_ms": 10_001},
    ],
)
def test_values_that_nginx_would_misread_are_refused(changes: dict[str, object]) -> None:
    settings: dict[str, object] = {"media": "/srv/media"} | changes
    with pytest.raises(InvalidInput) as refused:
        render(Edge(**settings))  # type: ignore[arg-type]
    assert refused.value.field == next(iter(changes))
    assert 'a"b' not in str(refused.value)
