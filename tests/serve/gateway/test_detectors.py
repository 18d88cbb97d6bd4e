"""The model `detectors` over HTTP: what the Watchtower goes by, gates and promotion as of any model, calls beside."""

from typing import Any

import httpx
import orjson
import pytest
import redis

from serve.arguments import Arguments
from serve.artifacts import set_champion
from serve.gateway.rollouts import OPERATOR_HEADER, OPERATOR_VARIABLE
from serve.gateway.stages import ModelState
from serve.rollout.comparisons import compared_key
from serve.rollout.verdicts import GateVerdict, verdict_arguments
from serve.watchtower.settings import MODEL
from serve.watchtower.versions import TOLD, told_command
from tests.serve.gateway.conftest import OpenClient
from tests.serve.watchtower.settings_versions import settings_version
from tests.waiting import eventually


async def shown(client: httpx.AsyncClient) -> list[tuple[str | None, str, str, str]]:
    models = (await client.get("/v1/models")).json()["models"]
    return [(one["version"], one["role"], one["state"], one["detail"]) for one in models if one["name"] == MODEL]


async def test_what_the_watchtower_goes_by_is_shown_and_a_gate_is_asked_for(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPERATOR_VARIABLE, "secret")
    models, headers = arguments.settings().models, {OPERATOR_HEADER: "secret"}
    first, second = settings_version(models), settings_version(models, evidence=7.0)
    set_champion(models, MODEL, first)
    store = redis.Redis.from_url(arguments.settings().redis_url)
    async with open_client(arguments) as client:
        ((version, role, state, detail),) = await shown(client)
        assert (version, role, state) == (first, "champion", "unreachable")
        assert "Watchtower" in detail
        assert (await client.get("/v1/outages")).json()["degraded"] == ["outages_unknown"]
        refused = ModelState(name=MODEL, version=first, loaded_ts=1, state="refused", detail="a wrong hash")
        store.execute_command(*told_command([refused]))  # type: ignore[no-untyped-call]

        async def is_told() -> bool:
            return await shown(client) == [(first, "champion", "refused", "a wrong hash")]

        await eventually(is_told)
        assert "stale_model" in (await client.get("/v1/outages")).json()["degraded"]
        store.set(TOLD, b"damaged")
        assert await is_told(), "what was told before"

        async def promote() -> httpx.Response:
            return await client.post(f"/v1/models/{MODEL}/promote", json={"version": second}, headers=headers)

        answer = await promote()
        assert (answer.status_code, "no verdict" in answer.text) == (409, True)
        verdict = GateVerdict(model=MODEL, version=second, against=first, passed=True, ts=1)
        store.execute_command(*verdict_arguments(verdict))  # type: ignore[no-untyped-call]
        plan = (await promote()).json()
        assert (plan["champion"], plan["challenger"]) == (first, second)
        told: dict[str, Any] = {second: {"both": 2, "champion_only": 1}, "f" * 12: {"both": 1}}
        store.hset(compared_key(MODEL), "outages", orjson.dumps(told))
        found = (await client.get(f"/v1/models/{MODEL}/rollout")).json()["compared"]
        assert found == [{"version": second, "role": "challenger", "both": 2, "champion_only": 1}]
