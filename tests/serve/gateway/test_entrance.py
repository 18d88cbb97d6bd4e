"""What every request passes: tokens, deadlines, and answers to what nobody expected."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from features.profiles import ProfileFeatures
from serve.arguments import TOKEN_VARIABLE, Arguments
from serve.errors import InvalidInput
from serve.gateway.stages import StageUnreachable
from serve.logs import RequestLogSettings, configure
from serve.schemas import Answer, HomePage, HomeQuery
from tests.serve.gateway.conftest import OpenClient

PROTECTED = ["/v1/home?profile_id=p1", "/v1/titles/t1/similar", "/v1/models", "/metrics", "/v1/nothing"]
OPEN = ["/healthz", "/readyz", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"]


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer secret2", "Basic secret", "secret", "bearer secret", ""]
)
async def test_without_the_token_nothing_is_told(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    async with open_client(arguments) as client:
        headers = {} if given is None else {"authorization": given}
        for path in PROTECTED:
            answer = await client.get(path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["errors"][0]["got"] == ("another token" if given else "nothing")
        for path in OPEN:
            assert (await client.get(path, headers=headers)).status_code == 200
        answer = await client.get(PROTECTED[0], headers={"authorization": "Bearer secret"})
        assert answer.status_code == 200
        assert (await client.get("/openapi.json")).json()["security"] == [{"token": []}]


async def test_beyond_loopback_a_token_is_required(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    exposed = arguments.model_copy(update={"listen_host": "0.0.0.0"})
    with pytest.raises(InvalidInput, match=TOKEN_VARIABLE):
        async with open_client(exposed):
            pass
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    async with open_client(exposed) as client:
        assert (await client.get("/readyz")).status_code == 200


class Faulty:
    """A ranker with a fault; a stage that fails cannot be had any other way."""

    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        return await self.similar(profile.profile_id, query)

    async def similar(self, title_id: str, query: HomeQuery) -> Answer:
        if self.fault is not None:
            raise self.fault
        await asyncio.sleep(60)
        raise AssertionError("was not cancelled")


@pytest.mark.timed
@pytest.mark.parametrize(
    ("fault", "reason", "status"),
    [
        (RuntimeError("a secret of the inside"), "ranker_failed", 503),
        (StageUnreachable("ranker_unreachable"), "ranker_unreachable", 503),
        (None, "ranker_timeout", 504),
    ],
)
async def test_a_ranker_that_fails_costs_the_page_but_not_the_answer(
    arguments: Arguments, open_client: OpenClient, fault: Exception | None, reason: str, status: int
) -> None:
    async with open_client(arguments, stages={"ranker": Faulty(fault)}) as client:
        started = time.monotonic()
        answer = await client.get("/v1/home?profile_id=p1", headers={"x-request-timeout-seconds": "0.3"})
        assert time.monotonic() - started < 0.3
        assert answer.status_code == 200
        page = HomePage.model_validate_json(answer.content)
        assert page.degraded == (reason,)
        assert page.rows == ()
        refused = await client.get("/v1/titles/t1/similar", headers={"x-request-timeout-seconds": "0.3"})
        assert (refused.status_code, refused.headers["retry-after"]) == (status, "1")
        assert refused.json()["errors"][0]["got"] == reason
        assert "secret" not in refused.text
        metrics = (await client.get("/metrics")).text
        assert f'playhead_stage_failures_total{{kind="{reason}",stage="ranking"}} 2.0' in metrics
        assert f'playhead_degraded_total{{reason="{reason}"}} 1.0' in metrics


@pytest.mark.timed
async def test_a_failing_model_does_not_flood_the_log(
    arguments: Arguments, open_client: OpenClient, capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    async with open_client(arguments, stages={"ranker": Faulty(RuntimeError("of another shape"))}) as client:
        started = time.monotonic()
        answers = [await client.get("/v1/home?profile_id=p1") for _ in range(200)]
        seconds = time.monotonic() - started
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [line for line in lines if line["logger"] == "playhead.player"]
    assert 1 <= len(told) <= RequestLogSettings().per_second * (int(seconds) + 2) < 200
    assert (told[0]["request_id"], told[0]["route"]) == (answers[0].json()["request_id"], "/v1/home")
    assert "of another shape" in told[0]["exception"]


async def test_what_nobody_expected_is_a_problem_with_no_inside_and_a_log_line_with_all(
    arguments: Arguments, open_client: OpenClient, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        async def read(self, profile_id: str, deadline_ms: float | None = None) -> ProfileFeatures:
            raise RuntimeError("a secret of the inside")

        async def write(self, events: Any) -> Any:
            raise RuntimeError("a secret of the inside")

    configure()
    async with open_client(arguments, stages={"features": Broken(), "events": Broken()}) as client:
        event = {"event_id": "e", "profile_id": "p", "title_id": "t", "kind": "play", "ts": 1}
        for request in (
            client.build_request("GET", "/v1/home?profile_id=p1", headers={"x-request-id": "r-1"}),
            client.build_request("POST", "/v1/events", json={"events": [event]}, headers={"x-request-id": "r-1"}),
        ):
            answer = await client.send(request)
            assert answer.status_code == 500
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["request_id"] == answer.headers["x-request-id"] == "r-1"
            assert answer.json()["errors"] == []
            assert "secret" not in answer.text
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    failures = [line for line in lines if line["message"] == "exception"]
    assert [line["request_id"] for line in failures] == ["r-1", "r-1"]
    assert all("a secret of the inside" in line["exception"] for line in failures)


async def test_the_documentation_needs_no_network(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{asset}" in page
        assert len((await client.get(f"/static-offline-docs/{asset}")).content) > 10_000
