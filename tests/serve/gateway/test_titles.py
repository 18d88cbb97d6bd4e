"""New titles and fresh popularity are recommended within seconds, by a model that never saw them, with no restart."""

import time

import httpx
import pytest
import redis

from features.additions import added_key, put_titles, remove_titles, revision_key
from serve.arguments import Arguments
from tests.conftest import ValkeyProcess
from tests.serve.conftest import make_title
from tests.serve.gateway.conftest import OpenClient
from tests.serve.gateway.test_player import event, home, post, titles_of
from tests.waiting import eventually

WITHIN_S = 10.0


async def served(client: httpx.AsyncClient, title_id: str) -> bool:
    return (await client.get(f"/v1/titles/{title_id}/similar")).status_code == 200


@pytest.fixture
def by_default(arguments: Arguments) -> Arguments:
    """Arguments with the periods that a placement has by itself."""
    fields = Arguments.model_fields
    names = ("catalogue_poll_s", "title_stats_poll_s")
    return arguments.model_copy(update={name: fields[name].default for name in names})


async def test_a_new_title_is_recommended_within_ten_seconds(by_default: Arguments, open_client: OpenClient) -> None:
    settings = by_default.settings()
    new = make_title(900, name="Brand new", added_ts=int(time.time() * 1000), genres=("Comedy",))
    async with open_client(by_default) as client:
        version = (await home(client)).versions.model
        assert not await served(client, "t900")
        began_s = time.monotonic()
        put_titles(settings, "small", [new])

        async def on_pages() -> bool:
            return any(item.title_id == "t900" for row in (await home(client)).rows for item in row.items)

        await eventually(on_pages, WITHIN_S)
        assert titles_of(await home(client), "trending_now") == [], "nobody has played anything"
        await eventually(lambda: served(client, "t900"), WITHIN_S)
        similar = (await client.get("/v1/titles/t900/similar")).json()["items"]
        assert similar
        played = ["t900", *(f"t{number}" for number in range(120, 150))]  # some are not in a row above
        await post(client, *[event("play", title_id, profile_id="v1") for title_id in played])

        async def trending() -> bool:
            found = titles_of(await home(client), "trending_now")
            return bool(found) and set(found) <= set(played)

        await eventually(trending, WITHIN_S)
        assert time.monotonic() - began_s < 2 * WITHIN_S
        page = await home(client)
        assert (page.versions.model, page.degraded) == (version, ("unknown_profile",))
    async with open_client(by_default) as client:
        assert await served(client, "t900"), "a gateway that starts knows it at once"
        remove_titles(settings, "small", ["t900"])

        async def gone() -> bool:
            return not await served(client, "t900")

        await eventually(gone, WITHIN_S)


async def test_a_store_that_is_away_or_holds_rubbish_costs_no_title(
    arguments: Arguments, open_client: OpenClient, valkey_process: ValkeyProcess
) -> None:
    asked = arguments.model_copy(update={"redis_url": valkey_process.url})
    settings = asked.settings()
    put_titles(settings, "small", [make_title(900)])
    async with open_client(asked) as client:
        assert await served(client, "t900")
        with redis.Redis.from_url(valkey_process.url) as store:
            store.hset(added_key("small"), "bad", "{}")
            store.set(revision_key("small"), "another")

            async def refused() -> bool:
                return b'stage="added_titles"' in (await client.get("/metrics")).content

            await eventually(refused)
            assert await served(client, "t900")
            store.hdel(added_key("small"), "bad")
        valkey_process.kill()
        assert await served(client, "t900")
        valkey_process.start()
        put_titles(settings, "small", [make_title(901)])
        await eventually(lambda: served(client, "t901"))
        assert await served(client, "t900")
