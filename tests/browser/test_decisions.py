"""The shipped client: what it follows, and what it leaves to the player's own rules."""

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.browser.playhead import PlayheadServer
from tests.conftest import free_port

NODE: Final = shutil.which("node")
SOUND: Final = {"rung": 3, "ttl_s": 2, "degraded": []}

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed (Debian: apt-get install nodejs)")


def decide(url: str, *, age_ms: int = 0, **options: Any) -> dict[str, Any]:
    """What the client makes of one question."""
    assert NODE is not None
    given = {"options": {"url": url, "deadlineMs": 2000, "sessionId": "s-81"} | options, "ageMs": age_ms}
    script = Path(__file__).with_name("decide.mjs")
    done = subprocess.run(
        [NODE, str(script), json.dumps(given)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def answering(status: int, body: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives every question the same answer, its URL, and the questions."""
    questions: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            questions.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/bitrate", questions
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_sound_decision_is_followed() -> None:
    with answering(200, json.dumps(SOUND)) as (url, questions):
        outcome = decide(url, titleId="242", more={"cdn": "edge-eu"})
    assert outcome["atOnce"] is None  # it never waits
    assert outcome["choice"] == outcome["again"] == "d"
    assert outcome["counts"]["followed"] == 1
    assert outcome["counts"]["asked"] == 2
    assert outcome["pastTheEnd"] is None
    assert outcome["askedAtTheEnd"] == 2
    assert questions[-1] == {
        "session_id": "s-81",
        "title_id": "242",
        "cdn": "edge-eu",
        "segment_index": 4,
        "segment_count": 18,
        "segment_s": 2,
        "buffer_s": 9.5,  # 8 now, 0.5 gone while 1000 kbit come at 2000 kbit/s, 2 gained
        "max_buffer_s": 30,
        "last_rung": 1,
        "throughput_kbps": [2000],
        "download_s": [1],
        "rungs_kbps": [240, 500, 950, 1700, 3000],
    }


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (503, json.dumps(SOUND), "failed"),
        (200, "not JSON", "failed"),
        (200, "null", "failed"),
        (200, json.dumps(SOUND | {"rung": 5}), "wrong"),
        (200, json.dumps(SOUND | {"rung": -1}), "wrong"),
        (200, json.dumps(SOUND | {"rung": "d"}), "wrong"),
        (200, json.dumps(SOUND | {"ttl_s": None}), "wrong"),
        (200, json.dumps({"rung": 3, "ttl_s": 2}), "wrong"),
        (200, json.dumps(SOUND | {"degraded": ["model_missing"]}), "degraded"),
    ],
)
def test_other_answers_are_left_to_the_player_s_own_rules(status: int, body: str, why: str) -> None:
    with answering(status, body) as (url, _):
        outcome = decide(url)
    assert outcome["choice"] is None
    assert outcome["counts"][why] == 1
    assert outcome["counts"]["followed"] == 0


def test_an_answer_holds_for_its_time_to_live() -> None:
    with answering(200, json.dumps(SOUND | {"ttl_s": 0.05})) as (url, _):
        outcome = decide(url, age_ms=200)
    assert outcome["choice"] is None
    assert outcome["counts"]["expired"] == 1


def test_nobody_there_and_nobody_answering() -> None:
    outcome = decide(f"http://127.0.0.1:{free_port()}/v1/bitrate")
    assert (outcome["choice"], outcome["counts"]["failed"]) == (None, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outcome = decide(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/bitrate", deadlineMs=200)
    assert outcome["choice"] is None
    assert outcome["counts"]["late"] == 2  # at once, and after the deadline


def test_playhead_s_own_answers_are_understood(playhead: PlayheadServer) -> None:
    outcome = decide(f"http://127.0.0.1:{playhead.port}/v1/bitrate", followDegraded=True)
    assert outcome["choice"] in {"a", "b", "c", "d", "e"}
    assert outcome["counts"]["followed"] == 1
