"""Viewers who browse: they play what they like of what is shown, and say what became of each visit."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from loadtests.browsing import Browsing, BrowsingSettings, Viewers
from serve.errors import InvalidInput

GENRES = ("Crime", "Drama")


def viewers(taste: list[list[float]]) -> Viewers:
    names = [f"p{place}" for place in range(len(taste))]
    return Viewers(
        profiles=names, regions=["eu"] * len(names), devices=["tv"] * len(names), genres=GENRES,
        taste=np.array(taste), titles={"Crime": ["c9"]},
    )  # fmt: skip


def page(*genres: str) -> dict[str, Any]:
    items = [{"title_id": f"t{rank}", "genres": [genre], "rank": rank} for rank, genre in enumerate(genres)]
    return {"request_id": "r1", "versions": {"model": "v"}, "degraded": [], "rows": [{"id": "top", "items": items}]}


def test_what_is_liked_and_stands_first_is_played_more() -> None:
    browsing = Browsing(BrowsingSettings(url="", eagerness=0.5), viewers([[0.0, 1.0]]))
    taste = {"Crime": 0.0, "Drama": 1.0}
    shown = page("Crime", "Drama", "Drama", "Drama")
    chosen = Counter(
        "nothing" if choice is None else choice[0]["title_id"]
        for choice in (browsing.choose(shown, taste) for _ in range(4_000))
    )
    assert chosen["t0"] == 0
    assert chosen["t1"] / 4_000 == pytest.approx(0.78 * 0.5, abs=0.03)
    assert chosen["t1"] > chosen["t2"] > chosen["t3"] > 0


def test_a_shift_moves_tastes_from_genre_to_genre() -> None:
    shifted = viewers([[0.9, 0.1], [0.2, 0.8]]).shifted([1, 0])
    assert shifted.taste.tolist() == [[0.1, 0.9], [0.8, 0.2]]
    with pytest.raises(InvalidInput, match="moves"):
        shifted.shifted([1, 1])


def test_tastes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInput, match="taste"):
        viewers([[1.0, 0.0, 0.0]])


@pytest.fixture
def service() -> Iterator[dict[str, Any]]:
    state: dict[str, Any] = {"events": [], "asked": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def do_GET(self) -> None:
            state["asked"] += 1
            self._answer(503 if state["asked"] % 5 == 0 else 200, page("Drama", "Drama"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state["events"] += body["events"]
            self._answer(200, {"accepted": len(body["events"])})

        def _answer(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state | {"url": f"http://127.0.0.1:{server.server_port}", "state": state}
    server.shutdown()
    server.server_close()
    thread.join()


def test_visits_tell_what_became_of_them_and_plays_name_their_page(service: dict[str, Any]) -> None:
    browsing = Browsing(
        BrowsingSettings(url=service["url"], pages_per_s=25.0, eagerness=0.9, searches=1.0),
        viewers([[0.0, 1.0], [1.0, 0.0]]),
    )
    asyncio.run(browsing.run(lambda: len(browsing.visits) >= 50))
    errors = Counter(visit.error for visit in browsing.visits)
    assert set(errors) == {"", "http_503"}
    answered = [visit for visit in browsing.visits if not visit.error]
    assert {visit.version for visit in answered} == {"v"}
    assert 0 < sum(visit.played for visit in answered) < len(answered)
    plays = [event for event in service["state"]["events"] if event["kind"] == "play"]
    of_page = [event for event in plays if event.get("request_id")]
    searched = [event for event in plays if not event.get("request_id")]
    assert len(of_page) == sum(visit.played for visit in answered)
    assert {(event["profile_id"], event["row"], event["request_id"]) for event in of_page} == {("p0", "top", "r1")}
    assert {(event["profile_id"], event["title_id"]) for event in searched} <= {("p1", "c9")}
    assert len(searched) > 0


def test_a_service_that_is_away_is_an_error_of_each_visit() -> None:
    browsing = Browsing(BrowsingSettings(url="http://127.0.0.1:9", pages_per_s=200.0), viewers([[0.5, 0.5]]))
    asyncio.run(browsing.run(lambda: len(browsing.visits) >= 5))
    assert {visit.error for visit in browsing.visits} == {"connect"}
