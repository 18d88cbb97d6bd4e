"""The shipped client: what it follows, and what it leaves to the player's own rules."""

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.browser.answers import answering
from tests.browser.playhead import PlayheadServer
from tests.conftest import free_port

NODE: Final = shutil.which("node")
SOUND: Final = {"rung": 3, "ttl_s": 2, "degraded": []}

pytestmark = [
    pytest.mark.timed,
    pytest.mark.skipif(NODE is None, reason="node is not installed (Debian: apt-get install nodejs)"),
]


def decide(port: int, *, age_ms: int = 0, **options: Any) -> dict[str, Any]:
    """What the client makes of one question."""
    assert NODE is not None
    given = {
        "options": {"url": f"http://127.0.0.1:{port}/v1/bitrate", "deadlineMs": 2000, "sessionId": "s-81"} | options,
        "ageMs": age_ms,
    }
    script = Path(__file__).with_name("decide.mjs")
    done = subprocess.run(
        [NODE, str(script), json.dumps(given)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sound_decision_is_followed() -> None:
    with answering(200, body=json.dumps(SOUND)) as server:
        outcome = decide(server.port, titleId="242", more={"cdn": "edge-eu"})
    assert outcome["atOnce"] is None  # it never waits
    assert outcome["choice"] == outcome["again"] == "d"
    assert outcome["counts"]["followed"] == 1
    assert outcome["counts"]["asked"] == 2
    assert outcome["pastTheEnd"] is None
    assert outcome["askedAtTheEnd"] == 2
    assert json.loads(server.requests[-1].body) == {
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
        (200, json.dumps(SOUND | {"degraded": ["stale_model", "bad_field:buffer_s"]}), "degraded"),
    ],
)
def test_other_answers_are_left_to_the_player_s_own_rules(status: int, body: str, why: str) -> None:
    with answering(status, body=body) as server:
        outcome = decide(server.port)
    assert outcome["choice"] is None
    assert outcome["counts"][why] == 1
    assert outcome["counts"]["followed"] == 0


def test_a_version_that_stands_in_for_another_is_followed() -> None:
    with answering(200, body=json.dumps(SOUND | {"degraded": ["stale_model"]})) as server:
        outcome = decide(server.port)
    assert outcome["choice"] == "d"
    assert (outcome["counts"]["followed"], outcome["counts"]["degraded"]) == (1, 0)


def test_an_answer_holds_for_its_time_to_live() -> None:
    with answering(200, body=json.dumps(SOUND | {"ttl_s": 0.05})) as server:
        outcome = decide(server.port, age_ms=200)
    assert outcome["choice"] is None
    assert outcome["counts"]["expired"] == 1


def test_nobody_there_and_nobody_answering() -> None:
    outcome = decide(free_port())
    assert (outcome["choice"], outcome["counts"]["failed"]) == (None, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outcome = decide(silent.getsockname()[1], deadlineMs=200)
    assert outcome["choice"] is None
    assert outcome["counts"]["late"] == 2  # at once, and after the deadline


def test_playhead_s_own_answers_are_understood(playhead: PlayheadServer) -> None:
    outcome = decide(playhead.port)
    assert outcome["choice"] in {"a", "b", "c", "d", "e"}
    assert outcome["counts"]["followed"] == 1
