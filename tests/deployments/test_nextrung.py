"""A decision in the terminal: what is asked is what the service documents, and what is shown is its answer."""

import json
import re

from deployments.nextrung import SESSION, decision_line, request_of
from serve.bitrate.schemas import BitrateDecision, BitrateSession

DECISION = {
    "request_id": "r", "versions": {"bitrate": "5d0c6f1a9b42"}, "session_id": None, "rung": 3, "bitrate_kbps": 1850.0,
    "max_safe_kbps": 1850.0, "rebuffer_probability": 0.0121, "expected_quality": 1.85,
    "throughput_kbps": {"p10": 1540.0, "p50": 2190.4, "p90": 2810.0}, "degraded": [], "ttl_s": 4.0,
}  # fmt: skip


def test_the_session_is_as_documented_and_the_curl_asks_the_same() -> None:
    BitrateSession.model_validate(SESSION)
    found = re.fullmatch(r"curl 'http://127.0.0.1:8000/v1/bitrate' -d '(.*)'", request_of("http://127.0.0.1:8000"))
    assert found is not None
    assert json.loads(found[1]) == SESSION


def test_the_line_shows_the_answer_and_what_it_lacks() -> None:
    BitrateDecision.model_validate(DECISION)
    line = decision_line(DECISION)
    for part in ("1850 kbit/s", "0.012", "2,190", "5d0c6f1a9b42"):
        assert part in line
    assert "degraded" not in line
    assert "model_missing" in decision_line(DECISION | {"versions": {}, "degraded": ["model_missing"]})
