"""The player's routes, end to end in one process: pages, similar titles, events, and what is left without a part."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from features.online import OnlineFeatures
from features.titles import Title
from serve.arguments import Arguments
from serve.errors import InvalidInput
from serve.schemas import EventReceipt, HomePage, SimilarTitles
from tests.conftest import ValkeyProcess
from tests.serve.conftest import make_title
from tests.serve.gateway.conftest import OpenClient, install_model, write_titles
from tests.waiting import eventually

HOUR_MS = 3_600_000


def event(kind: str, title_id: str, **given: Any) -> dict[str, Any]:
    ts = given.get("ts", int(time.time() * 1000) - HOUR_MS)
    named = {"event_id": f"{kind}-{title_id}-{ts}", "profile_id": "p1", "title_id": title_id, "kind": kind, "ts": ts}
    return named | given


async def post(client: httpx.AsyncClient, *events: dict[str, Any]) -> EventReceipt:
    answer = await client.post("/v1/events", json={"events": events})
    assert answer.status_code == 200, answer.text
    return EventReceipt.model_validate_json(answer.content)


async def home(client: httpx.AsyncClient, profile_id: str = "p1", **query: Any) -> HomePage:
    answer = await client.get("/v1/home", params={"profile_id": profile_id, **query})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    page = HomePage.model_validate_json(answer.content)
    assert page.request_id == answer.headers["x-request-id"]
    assert page.profile_id == profile_id
    return page


def titles_of(page: HomePage, row: str) -> list[str]:
    return [item.title_id for found in page.rows if found.id == row for item in found.items]


async def test_a_page_fits_the_documented_schema(client: httpx.AsyncClient) -> None:
    page = await home(client, "somebody-new", rows=5, items=4)
    assert page.degraded == ("unknown_profile",)
    assert page.versions.model is not None
    assert 1 <= len(page.rows) <= 5
    assert all(len(row.items) <= 4 for row in page.rows)


async def test_the_next_page_knows_the_last_event(client: httpx.AsyncClient) -> None:
    await post(client, event("finish", "t5", ts=int(time.time() * 1000) - 5 * HOUR_MS))
    before = await home(client)
    assert before.degraded == ()
    picked = titles_of(before, "top_picks")[0]
    receipt = await post(client, event("play", picked), event("progress", picked, position_s=600, duration_s=3600))
    assert (receipt.accepted, receipt.duplicates) == (2, 0)
    after = await home(client)
    assert titles_of(after, "continue_watching")[0] == picked
    assert picked not in titles_of(after, "top_picks")
    await post(client, event("finish", picked, ts=int(time.time() * 1000)))
    assert picked not in titles_of(await home(client), "continue_watching")


async def test_events_are_idempotent(client: httpx.AsyncClient, arguments: Arguments) -> None:
    played = event("play", "t9")
    assert (await post(client, played)).accepted == 1
    reader = OnlineFeatures(arguments.settings())
    before = await reader.read("p1")
    assert (await post(client, played, played)).model_dump(exclude={"request_id"}) == {"accepted": 0, "duplicates": 2}
    assert await reader.read("p1") == before
    assert before.known
    await reader.close()


async def test_similar_titles(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/titles/t7/similar", params={"items": 6})
    found = SimilarTitles.model_validate_json(answer.content)
    assert found.request_id == answer.headers["x-request-id"]
    assert len(found.items) == 6
    assert "t7" not in [item.title_id for item in found.items]

    unknown = await client.get("/v1/titles/no/such/title/similar")
    assert unknown.status_code == 404
    assert unknown.json()["errors"][0]["got"] == "'no/such/title'"


async def test_kids_and_regions_pass_through(client: httpx.AsyncClient, small_titles: list[Title]) -> None:
    by_id = {title.title_id: title for title in small_titles}
    page = await home(client, "p9", kids="true", region="us")
    shown = [by_id[item.title_id] for row in page.rows for item in row.items]
    assert shown
    assert all(title.kids and (not title.regions or "us" in title.regions) for title in shown)


@pytest.mark.timed
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_its_store_it_answers_degraded_and_recovers(
    arguments: Arguments, open_client: OpenClient, valkey_process: ValkeyProcess, how: str
) -> None:
    asked = arguments.model_copy(update={"redis_url": valkey_process.url, "store_deadline_ms": 50, "deadline_s": 0.6})
    async with open_client(asked) as client:
        await post(client, event("finish", "t5"))
        assert (await home(client)).degraded == ()
        assert valkey_process.process is not None
        if how == "killed":
            valkey_process.kill()
        else:
            os.kill(valkey_process.process.pid, signal.SIGSTOP)
        try:
            for profile_id in ("p1", "p2"):
                started = time.monotonic()
                page = await home(client, profile_id)
                assert time.monotonic() - started < 0.6
                assert set(page.degraded) & {"features_timeout", "features_unavailable"}
                assert page.rows
            started = time.monotonic()
            refused = await client.post("/v1/events", json={"events": [event("play", "t8")]})
            assert time.monotonic() - started < 2.0
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["errors"][0]["field"] == "events"
            assert "127.0.0.1" not in refused.text, "an address of the inside left the service"
            if how == "frozen":
                scraped = (await client.get("/metrics")).text
                assert 'playhead_degraded_total{reason="features_timeout"}' in scraped
        finally:
            if how == "frozen":
                os.kill(valkey_process.process.pid, signal.SIGCONT)
            else:
                valkey_process.start()

        async def recovered() -> bool:
            answer = await client.post("/v1/events", json={"events": [event("play", "t8")]})
            return answer.status_code == 200 and (await home(client)).degraded == ()

        await eventually(recovered)
        assert "t8" in titles_of(await home(client), "continue_watching")


async def test_without_a_model_popular_titles_answer_until_there_is_one(
    arguments: Arguments, open_client: OpenClient, small_artifacts: tuple[Path, Path]
) -> None:
    assert arguments.home is not None
    (arguments.home / "models" / "recommend" / "champion").unlink()
    async with open_client(arguments) as client:
        page = await home(client)
        assert "model_missing" in page.degraded
        assert page.rows
        assert page.versions.model is None
        assert (await client.get("/v1/models")).json()["models"][0]["state"] == "missing"
        install_model(arguments.home, small_artifacts[0])

        async def live() -> bool:
            return (await home(client)).versions.model == small_artifacts[0].name

        await eventually(live)


async def test_a_new_champion_is_swapped_in_and_a_corrupt_one_is_refused(
    arguments: Arguments, open_client: OpenClient, small_artifacts: tuple[Path, Path]
) -> None:
    assert arguments.home is not None
    first, second = small_artifacts
    async with open_client(arguments) as client:

        async def model() -> dict[str, Any]:
            found: dict[str, Any] = (await client.get("/v1/models")).json()["models"][0]
            return found

        assert ((await model())["version"], (await model())["state"]) == (first.name, "live")
        install_model(arguments.home, second)
        graph = arguments.home / "models" / "recommend" / second.name / "ranker.pt2"
        whole = graph.read_bytes()
        graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

        async def refused() -> bool:
            return (await model())["state"] == "refused"

        await eventually(refused)
        found = await model()
        assert found["version"] == first.name
        assert "ranker.pt2" in found["detail"]
        assert (await home(client)).versions.model == first.name
        assert 'playhead_model_refused_total{model="recommend"} 1.0' in (await client.get("/metrics")).text

        graph.write_bytes(whole)
        install_model(arguments.home, second)

        async def swapped() -> bool:
            page = await home(client)
            assert page.versions.model in {first.name, second.name}
            return page.versions.model == second.name

        await eventually(swapped)
        assert (await model())["state"] == "live"


async def test_a_refused_champion_that_is_repaired_in_place_goes_live(
    arguments: Arguments,
    open_client: OpenClient,
    small_artifacts: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert arguments.home is not None
    monkeypatch.setattr("serve.rollout.fleet._RETRY_S", 0.3)
    graph = arguments.home / "models" / "recommend" / small_artifacts[0].name / "ranker.pt2"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1])
    async with open_client(arguments) as client:

        async def state() -> str:
            return str((await client.get("/v1/models")).json()["models"][0]["state"])

        assert await state() == "refused"
        graph.write_bytes(whole)

        async def live() -> bool:
            return await state() == "live"

        await eventually(live)
        assert (await home(client)).versions.model == small_artifacts[0].name


async def test_a_new_title_can_be_recommended_and_a_damaged_catalogue_is_refused(
    arguments: Arguments, open_client: OpenClient, small_titles: list[Title]
) -> None:
    assert arguments.home is not None
    home_folder = arguments.home
    async with open_client(arguments) as client:
        added = make_title(500, added_ts=int(time.time() * 1000), regions=())
        write_titles(home_folder, [*small_titles, added])

        async def shown() -> bool:
            return "t500" in {item.title_id for row in (await home(client)).rows for item in row.items}

        await eventually(shown)
        (home_folder / "data" / "small" / "titles.parquet").write_bytes(b"not parquet")
        await asyncio.sleep(0.3)
        assert await shown()


async def test_a_missing_catalogue_is_a_clear_refusal_at_start(arguments: Arguments, open_client: OpenClient) -> None:
    with pytest.raises(InvalidInput, match=r"titles\.parquet"):
        async with open_client(arguments.model_copy(update={"dataset": "absent"})):
            pass
