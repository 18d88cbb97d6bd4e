"""What breaks in the middle of a rollout: a replica, the folder of models, the store. Answers go on, and all heals."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest
import redis

from serve.arguments import Arguments
from serve.gateway.rollouts import OPERATOR_VARIABLE
from serve.rollout.assignment import assign
from serve.rollout.board import load_plan, plan_key
from serve.rollout.standing import SERVING, read_serving
from tests.conftest import ValkeyProcess, free_port
from tests.serve.gateway.conftest import OpenClient
from tests.serve.gateway.test_rollouts import HEADERS, NAMES, answering, change, is_answered_by, token, versions
from tests.waiting import eventually, wait_for

__all__ = ["token", "versions"]


@contextlib.contextmanager
def replica(arguments: Arguments, held: str, gate: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A gateway in a process, once it answers; killed at the end, if it still runs."""
    port = free_port()
    given = arguments.model_dump_json(exclude_unset=True)
    command = [sys.executable, "-m", "tests.serve.rollout.replica", given, str(port), held, str(gate)]
    process = subprocess.Popen(command, env={**os.environ, OPERATOR_VARIABLE: "secret"})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it did not come up"
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/readyz", timeout=5).status_code == httpx.codes.OK:
                    break
            time.sleep(0.05)
        yield url, process
    finally:
        process.kill()
        process.wait()


def version_of(url: str) -> str:
    page = httpx.get(f"{url}/v1/home", params={"profile_id": "p1", "rows": 1}, timeout=10)
    assert page.status_code == httpx.codes.OK
    return str(page.json()["versions"]["model"])


def test_a_replica_that_is_killed_while_it_loads_answers_by_the_plan_again(
    arguments: Arguments, versions: tuple[str, str], store: redis.Redis, tmp_path: Path
) -> None:
    first, second = versions
    gate = tmp_path / "gate"
    serving = arguments.settings().models / "recommend" / SERVING
    with replica(arguments, second, gate) as (url, process):
        body = {"version": second, "share": 1, "force": True}
        assert httpx.post(f"{url}/v1/models/recommend/promote", json=body, headers=HEADERS, timeout=10).is_success

        def loads() -> bool:
            assert version_of(url) == first
            return gate.exists()

        wait_for(loads)
        assert [version_of(url) for _ in range(5)] == [first] * 5, "the last good one answers while it loads"
        process.kill()
        process.wait()
    assert orjson.loads(serving.read_bytes())["champion"] == first
    assert load_plan(store.get(plan_key("recommend"))).champion == second  # type: ignore[arg-type]
    with replica(arguments, "nobody", gate) as (url, _):
        assert version_of(url) == second
        wait_for(lambda: orjson.loads(serving.read_bytes())["champion"] == second)


async def test_a_folder_of_models_that_is_away_costs_no_answer(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str]
) -> None:
    first, second = versions
    folder = arguments.settings().models / "recommend"
    away = folder.with_name("away")
    async with open_client(arguments) as client:
        shutil.move(folder, away)
        assert set((await answering(client)).values()) == {first}
        missing = await client.post("/v1/models/recommend/promote", json={"version": second}, headers=HEADERS)
        assert missing.status_code == httpx.codes.NOT_FOUND
        shutil.move(away, folder)
        await change(client, "promote", version=second, share=0.5)
        await eventually(lambda: is_answered_by(client, first, second))
        shutil.move(folder, away)
        assert set((await answering(client)).values()) == {first, second}, "what is loaded stays"
        shutil.move(away, folder)
        await change(client, "rollback")
        await eventually(lambda: is_answered_by(client, first))


async def test_what_stands_in_for_a_champion_that_cannot_be_loaded_says_so_until_it_can(
    arguments: Arguments,
    open_client: OpenClient,
    versions: tuple[str, str],
    store: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.rollout.fleet._RETRY_S", 0.2)
    first, second = versions
    folder = arguments.settings().models / "recommend" / second

    async def page(client: httpx.AsyncClient) -> tuple[str, bool]:
        found = (await client.get("/v1/home", params={"profile_id": "p1", "rows": 1})).json()
        return found["versions"].get("model", ""), "stale_model" in found["degraded"]

    async with open_client(arguments) as client:
        await change(client, "promote", version=second, share=1)

        async def promoted() -> bool:
            noted = read_serving(folder.with_name(SERVING)).get("champion")
            return noted == second and await page(client) == (second, False)

        await eventually(promoted)
    shutil.move(folder, folder.with_name("away"))
    store.delete(plan_key("recommend"))  # all that is left is this machine's note
    async with open_client(arguments) as client:
        assert await page(client) == (first, True)
        back = await client.post("/v1/models/recommend/rollback", json={"version": second}, headers=HEADERS)
        assert (back.status_code, store.get(plan_key("recommend"))) == (422, None), "what stands in is no way back"
        assert (await client.get("/v1/titles/t1/similar")).json()["degraded"] == ["stale_model"]
        shutil.move(folder.with_name("away"), folder)

        async def healed() -> bool:
            return await page(client) == (second, False)

        await eventually(healed)


async def test_a_store_that_is_lost_in_the_middle_changes_nobodys_version_and_is_told_again(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str], valkey_process: ValkeyProcess
) -> None:
    first, second = versions
    given = arguments.model_copy(update={"redis_url": valkey_process.url})
    async with open_client(given) as client:
        await change(client, "promote", version=second, share=0.5)
        await eventually(lambda: is_answered_by(client, first, second))
        with contextlib.closing(redis.Redis.from_url(valkey_process.url, socket_timeout=5)) as link:
            plan = load_plan(link.get(plan_key("recommend")))  # type: ignore[arg-type]
        expected = {name: second if assign(plan, name).challenged else first for name in NAMES}
        valkey_process.kill()
        assert await answering(client) == expected
        refused = await client.post("/v1/models/recommend/rollback", json={}, headers=HEADERS)
        assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
        valkey_process.start()
        with contextlib.closing(redis.Redis.from_url(valkey_process.url, socket_timeout=5)) as link:
            link.flushall()
            await eventually(lambda: link.exists(plan_key("recommend")))
            assert load_plan(link.get(plan_key("recommend"))) == plan  # type: ignore[arg-type]
        assert await answering(client) == expected
        await change(client, "rollback")
        await eventually(lambda: is_answered_by(client, first))
