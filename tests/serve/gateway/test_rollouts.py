"""Operators change which version answers, over HTTP: two versions side by side, and every way back."""

import asyncio
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson
import pytest
import redis
import redis.asyncio

from deployments.bench_swaps import twin_of
from features.profiles import ProfileFeatures
from serve.arguments import Arguments
from serve.bitrate.schemas import SESSION_EXAMPLE
from serve.clock import now_ms
from serve.gateway.rollouts import OPERATOR_HEADER, OPERATOR_VARIABLE
from serve.quality.bitstream import BitstreamFacts
from serve.quality.estimates import BitstreamModel
from serve.ranking import Ranker
from serve.rollout.asked import FIELD as ASKED_FIELD
from serve.rollout.asked import STREAM as ASKED
from serve.rollout.asked import read_asked
from serve.rollout.assignment import assign
from serve.rollout.board import change_arguments, load_plan, plan_key, status_key
from serve.rollout.comparisons import KEPT_S, compared_key
from serve.rollout.exposures import FIELD, STREAM, read_exposure
from serve.rollout.verdicts import GateVerdict, verdict_arguments, verdict_key
from serve.schemas import Answer, HomeQuery
from serve.vitals import ModelVitals
from serve.watchtower.replica import WatchtowerReplica
from tests.serve.bitrate.small_policy import small_policy
from tests.serve.gateway.conftest import OpenClient, install_model
from tests.serve.quality.small_quality import small_quality
from tests.waiting import eventually

HEADERS = {OPERATOR_HEADER: "secret"}
NAMES = [f"p{number}" for number in range(60)]
FOLLOWED_S = 5.0
"""Within which every replica follows a plan between versions that it has loaded."""


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPERATOR_VARIABLE, "secret")


@pytest.fixture
def versions(arguments: Arguments, small_artifacts: tuple[Path, Path]) -> tuple[str, str]:
    """The champion and another version, both published."""
    assert arguments.home is not None
    first, second = small_artifacts
    shutil.copytree(second, arguments.home / "models" / "recommend" / second.name)
    return first.name, second.name


async def change(client: httpx.AsyncClient, verb: str, model: str = "recommend", **body: Any) -> dict[str, Any]:
    if verb == "promote" and "version" in body:
        body = {"force": True, **body}  # what gates say is another matter, below
    answer = await client.post(f"/v1/models/{model}/{verb}", json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def answering(client: httpx.AsyncClient) -> dict[str, str]:
    """Profile -> version that makes its page; empty where a busy machine had none in time."""
    found = {}
    for name in NAMES:
        page = (await client.get("/v1/home", params={"profile_id": name, "rows": 1})).json()
        found[name] = page["versions"].get("model", "")
    return found


async def is_answered_by(client: httpx.AsyncClient, *versions: str) -> bool:
    """Whether each of them makes pages, and none else does."""
    return set((await answering(client)).values()) == set(versions)


async def roles(client: httpx.AsyncClient) -> list[tuple[str, str, float, str]]:
    models = (await client.get("/v1/models")).json()["models"]
    return [(one["version"], one["role"], one["share"], one["state"]) for one in models if one["name"] == "recommend"]


async def test_a_version_is_rolled_out_and_back_and_every_replica_follows(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str]
) -> None:
    first, second = versions
    async with open_client(arguments) as client, open_client(arguments) as other:
        plan = await change(client, "promote", version=second, share=0.5, by="eve", reason="looks good")
        assert (plan["champion"], plan["challenger"], plan["share"]) == (first, second, 0.5)

        async def both_loaded() -> bool:
            found = [await roles(one) for one in (client, other)]
            return all([state for _, _, _, state in one] == ["live", "live"] for one in found)

        await eventually(both_loaded)
        found = await answering(client)
        assert set(found.values()) == {first, second}
        assert await answering(other) == found, "whoever answers"
        assert await answering(client) == found, "again and again"
        assert (await roles(client))[1] == (second, "challenger", 0.5, "live")

        await change(other, "rollback", by="adam", reason="changed my mind")
        await eventually(lambda: is_answered_by(client, first), FOLLOWED_S)
        changes = (await client.get("/v1/models/recommend/changes")).json()["changes"]
        assert [(one["action"], one["by"], one["reason"]) for one in changes] == [
            ("rollback", "adam", "changed my mind"), ("promote", "eve", "looks good"),
        ]  # fmt: skip
        assert changes[0]["plan"]["challenger"] is None


async def test_stages_end_at_the_champion_and_a_restart_goes_on(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str]
) -> None:
    first, second = versions
    async with open_client(arguments) as client:
        assert (await change(client, "promote", version=second))["share"] == 0.01
        assert [(await change(client, "promote"))["share"] for _ in range(2)] == [0.1, 0.5]
    async with open_client(arguments) as client:  # restarted in the middle
        assert set((await answering(client)).values()) == {first, second}
        done = await change(client, "promote")
        assert (done["champion"], done["previous"], done["challenger"]) == (second, first, None)
        await eventually(lambda: is_answered_by(client, second))
        await change(client, "rollback", version=second)
        await eventually(lambda: is_answered_by(client, first))


async def test_a_damaged_challenger_costs_no_page(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str]
) -> None:
    first, second = versions
    assert arguments.home is not None
    (arguments.home / "models" / "recommend" / second / "ranker.pt2").write_bytes(b"rubbish")
    async with open_client(arguments) as client:
        await change(client, "promote", version=second, share=1)

        async def refused() -> bool:
            return "refused" in {state for _, _, _, state in await roles(client)}

        await eventually(refused)
        assert set((await answering(client)).values()) == {first}


async def test_a_shadow_works_beside_the_answers(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str]
) -> None:
    first, second = versions
    async with open_client(arguments) as client:
        await change(client, "shadow", version=second)

        async def shadows() -> bool:
            assert set((await answering(client)).values()) == {first}
            text = (await client.get("/metrics")).text
            return f'playhead_shadow_pages_total{{version="{second}"}}' in text

        await eventually(shadows)
        assert (second, "shadow", 0.0, "live") in await roles(client)
        await change(client, "shadow", version=None)

        async def gone() -> bool:
            return len(await roles(client)) == 1

        await eventually(gone)


async def test_bitrate_sessions_are_assigned_one_by_one_and_told(
    arguments: Arguments, open_client: OpenClient, store: redis.Redis
) -> None:
    assert arguments.home is not None
    first, second = small_policy(), small_policy(seed=1)
    install_model(arguments.home, first, "bitrate")
    shutil.copytree(second, arguments.home / "models" / "bitrate" / second.name)
    sessions = [SESSION_EXAMPLE | {"session_id": name} for name in NAMES]
    async with open_client(arguments) as client:
        await change(client, "promote", "bitrate", version=second.name, share=0.5)

        async def decided() -> dict[str, str]:
            answer = (await client.post("/v1/bitrate", json=sessions)).json()
            return {one["session_id"]: one["version"] for one in answer["decisions"]}

        async def mixed() -> bool:
            return set((await decided()).values()) == {first.name, second.name}

        await eventually(mixed)
        found = await decided()
        for name in NAMES[:10]:
            answer = (await client.post("/v1/bitrate", json=SESSION_EXAMPLE | {"session_id": name})).json()
            assert answer["versions"]["bitrate"] == answer["version"] == found[name], "alone or in a batch"
        nameless = (await client.post("/v1/bitrate", json=SESSION_EXAMPLE | {"session_id": None})).json()
        assert nameless["version"] == first.name
        models = (await client.get("/v1/models")).json()["models"]
        assert [one["role"] for one in models if one["name"] == "bitrate"] == ["champion", "challenger"]
        cmcd = "CMCD=" + quote('bl=9000,br=950,cid="title",d=2000,mtp=2100,ot=v,sid="a-player",tb=3000')
        assert (await client.get(f"/v1/bitrate/cmsd?{cmcd}")).status_code == 200
        plan = load_plan(store.get(plan_key("bitrate")))  # type: ignore[arg-type]

        def told() -> list[str]:
            found: Any = store.xrange(ASKED)
            entries = [read_asked(fields[ASKED_FIELD]) for _, fields in found]
            assert {(one.salt, one.share) for one in entries} <= {(plan.salt, 0.5)}
            return [session for one in entries for session in one.sessions]

        await eventually(lambda: "a-player" in told())
        assert sorted(told()) == sorted([*NAMES, "a-player"]), "each once"


SEGMENT: dict[str, Any] = {
    "codec": "hevc", "width": 1280, "height": 720, "display_height": 1080, "fps": 25, "duration_s": 4,
    "size_bytes": 900_000,
}  # fmt: skip


async def test_versions_of_quality_are_compared_beside_the_champions_estimates(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arguments.home is not None
    monkeypatch.setattr("serve.app.COMPARED_S", 0.1)
    install_model(arguments.home, small_quality(), "quality")
    first = arguments.home / "models" / "quality" / small_quality().name
    second = twin_of(first)
    quantiles = BitstreamModel.quantiles

    def higher(self: BitstreamModel, facts: Sequence[BitstreamFacts]) -> Any:
        """As its weights say; of the second version, 3 points more for H.264."""
        more = [3.0 if self.version == second.name and one.codec == "h264" else 0.0 for one in facts]
        return 40.0 + 0.1 * quantiles(self, facts) + np.array(more)[:, None]

    monkeypatch.setattr(BitstreamModel, "quantiles", higher)
    segments = [SEGMENT, SEGMENT | {"codec": "h264", "height": 1000}, SEGMENT | {"size_bytes": 5_000}]
    gone = {"ts": now_ms() - KEPT_S * 1000 - 1, "versions": {second.name: {"vp9 720p": [5, 5.0, 5.0, 1.0]}}}
    strange = {second.name: {"av1 720p": [5, 5.0, 5.0, 1.0]}}
    async with redis.asyncio.Redis.from_url(arguments.settings().redis_url) as link:
        await link.hset(compared_key("quality"), mapping={"gone": orjson.dumps(gone), "else": orjson.dumps(strange)})
    async with open_client(arguments) as client, open_client(arguments) as other:
        assert (await client.get("/v1/models/quality/rollout")).json()["compared"] == []
        await change(client, "promote", "quality", version=second.name, share=0.5)

        async def told() -> dict[str, dict[str, Any]]:
            compared = (await client.get("/v1/models/quality/rollout")).json()["compared"]
            return {one["content"]: one for one in compared}

        async def compared_by_both() -> bool:
            for one in (client, other):
                answer = await one.post("/v1/quality", json={"segments": segments})
                assert answer.json()["report"]["version"] == first.name, "one ruler for all"
            keys = await link.hlen(compared_key("quality"))  # type: ignore[misc]
            return keys == 2 and "h264 1080p" in await told()

        async with redis.asyncio.Redis.from_url(arguments.settings().redis_url) as link:
            await eventually(compared_by_both)
        found = await told()
        assert set(found) == {"h264 1080p", "hevc 720p"}, "replicas that are gone count no more"
        assert (found["h264 1080p"]["version"], found["h264 1080p"]["role"]) == (second.name, "challenger")
        assert [found["h264 1080p"][name] for name in ("mean", "mean_absolute", "largest")] == [3.0] * 3
        assert found["hevc 720p"]["mean"] == 0.0
        assert found["hevc 720p"]["segments"] == 2 * found["h264 1080p"]["segments"]
        await change(client, "rollback", "quality")
        assert await told() == {}, "who is not tried any more is left out"


@pytest.mark.parametrize(
    ("verb", "body", "headers", "status", "field"),
    [
        ("promote", {}, {}, 401, OPERATOR_HEADER),
        ("promote", {}, {OPERATOR_HEADER: "wrong"}, 401, OPERATOR_HEADER),
        ("rollback", {}, {"Authorization": "Bearer secret"}, 401, OPERATOR_HEADER),
        ("promote", {}, HEADERS, 422, "version"),
        ("promote", {"version": "0" * 12}, HEADERS, 404, "version"),
        ("promote", {"version": "../x"}, HEADERS, 422, "version"),
        ("promote", {"share": 0}, HEADERS, 422, "share"),
        ("promote", {"share": 1.5}, HEADERS, 422, "share"),
        ("pause", {}, HEADERS, 422, "model"),
        ("rollback", {}, HEADERS, 422, "version"),
        ("promote", {"version": "0" * 12}, {}, 401, OPERATOR_HEADER),
        ("promote", {"share": "half", "unknown": 1}, {}, 401, OPERATOR_HEADER),  # strangers learn nothing of the body
        ("rollback", {"reason": "x" * 501}, HEADERS, 422, "reason"),
        ("rollback", {"reason": "\x1b[31mred"}, HEADERS, 422, "reason"),
        ("pause", {"by": "\x9b31m"}, HEADERS, 422, "by"),
        ("shadow", {"version": "0" * 12}, HEADERS, 404, "version"),
        ("shadow", {}, HEADERS, 422, "version"),
    ],
)
async def test_what_cannot_be_is_refused(
    client: httpx.AsyncClient, verb: str, body: dict[str, Any], headers: dict[str, str], status: int, field: str
) -> None:
    answer = await client.post(f"/v1/models/recommend/{verb}", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert field in answer.json()["errors"][0]["field"]
    assert (await client.get("/v1/models/recommend/changes")).json()["changes"] == []


async def test_models_that_are_not_there_are_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/models/nothing/rollback", json={}, headers=HEADERS)
    assert (answer.status_code, "recommend" in answer.text) == (404, True)
    assert (await client.get("/v1/models/nothing/changes")).status_code == 404


async def test_what_is_known_of_a_rollout_is_shown(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str], store: redis.Redis
) -> None:
    async with open_client(arguments) as client:
        before = (await client.get("/v1/models/recommend/rollout")).json()
        assert (before["plan"]["champion"], before["plan"]["revision"], before["judged"]) == (versions[0], 0, None)
        store.set(status_key("recommend"), b'{"action": "wait"}')
        assert (await client.get("/v1/models/recommend/rollout")).json()["judged"] is None, "none goes on"
        await change(client, "promote", version=versions[1])
        shown = (await client.get("/v1/models/recommend/rollout")).json()
        assert (shown["plan"]["challenger"], shown["judged"]) == (versions[1], {"action": "wait"})


async def test_a_rollout_begins_only_with_a_gate_that_passed_against_the_champion(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str], store: redis.Redis
) -> None:
    first, second = versions

    def judge(**said: Any) -> None:
        fields = {"model": "recommend", "version": second, "against": first, "passed": True, "ts": 1, **said}
        store.execute_command(*verdict_arguments(GateVerdict(**fields)))

    async with open_client(arguments) as client:

        async def refused(why: str, **said: Any) -> bool:
            body = {"version": second, **said}
            answer = await client.post("/v1/models/recommend/promote", json=body, headers=HEADERS)
            return answer.status_code == 409 and why in answer.text and "playhead gate" in answer.text

        assert await refused("no verdict")
        assert await refused("no verdict", share=1)
        judge(passed=False, failed=("parity", "latency"))
        assert await refused("parity, latency")
        judge(against="0" * 12)
        assert await refused("0" * 12)
        store.set(verdict_key("recommend", second), b"nonsense")
        assert await refused("no verdict")
        judge()
        assert (await change(client, "promote", version=second, force=False))["challenger"] == second
        await change(client, "rollback")
        judge(passed=False)
        assert (await change(client, "promote", version=second))["challenger"] == second
        changes = (await client.get("/v1/models/recommend/changes")).json()["changes"]
        assert [one["evidence"] for one in changes] == [{"forced": True}, {}, {}]
        judge()
        plan = load_plan(store.get(plan_key("recommend"))).rolled_back(1).crowned("f" * 12, 2)  # type: ignore[arg-type]
        note = {"action": "test", "by": "test", "reason": "", "evidence": {}}
        follows = plan.revision - 2
        assert store.execute_command("EVAL", *change_arguments(plan, note, after=follows))
        for share in (None, 0.5, 1):
            assert await refused(f"passed against {first}", share=share), "it was another champion"


async def test_without_a_token_in_the_environment_nobody_may(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OPERATOR_VARIABLE)
    async with open_client(arguments) as client:
        answer = await client.post("/v1/models/recommend/rollback", json={}, headers={OPERATOR_HEADER: ""})
        assert answer.status_code == 403
        assert OPERATOR_VARIABLE in answer.text


async def test_a_store_that_is_down_is_said(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str], valkey_process: Any
) -> None:
    async with open_client(arguments.model_copy(update={"redis_url": valkey_process.url})) as client:
        valkey_process.kill()
        body = {"version": versions[1], "force": True}
        answer = await client.post("/v1/models/recommend/promote", json=body, headers=HEADERS)
        assert answer.status_code == 503
        assert set((await answering(client)).values()) == {versions[0]}


async def test_of_two_changes_at_once_each_is_made_on_the_others(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str]
) -> None:
    async with open_client(arguments) as client:
        await change(client, "promote", version=versions[1], share=0.2)
        await asyncio.gather(*[change(client, "promote", share=share) for share in (0.3, 0.4)])
        changes = (await client.get("/v1/models/recommend/changes")).json()["changes"]
        assert [one["plan"]["revision"] for one in changes] == [3, 2, 1]


async def test_pages_and_plays_are_told_as_exposures(
    arguments: Arguments, open_client: OpenClient, store: redis.Redis
) -> None:
    async with open_client(arguments) as client:
        page = (await client.get("/v1/home", params={"profile_id": "p1", "rows": 2, "items": 3, "device": "tv"})).json()
        title = page["rows"][0]["items"][0]["title_id"]
        event = {"event_id": "e1", "profile_id": "p1", "title_id": title, "kind": "play", "rank": 0,
                 "request_id": page["request_id"], "ts": int(time.time() * 1000) - 10}  # fmt: skip
        answer = await client.post("/v1/events", json={"events": [event]})
        assert answer.status_code == 200
        await eventually(lambda: store.xlen(STREAM) >= 2)
    shown, played = [read_exposure(fields[FIELD]) for _, fields in store.xrange(STREAM)]
    assert shown["rows"] == [[row["id"], [item["title_id"] for item in row["items"]]] for row in page["rows"]]
    assert (shown["request_id"], shown["version"], shown["propensity"]) == (
        page["request_id"], page["versions"]["model"], 1.0,
    )  # fmt: skip
    assert not shown["degraded"], "a new viewer is nobody's fault"
    assert (played["request_id"], played["title_id"]) == (page["request_id"], title)


async def test_a_poisoned_version_is_rolled_back_by_itself_and_no_page_fails(
    arguments: Arguments, open_client: OpenClient, versions: tuple[str, str]
) -> None:
    first, second = versions
    assert arguments.home is not None
    (arguments.home / "models" / "recommend" / second / "ranker.pt2").write_bytes(b"poison")
    stop = threading.Event()
    tower = threading.Thread(target=WatchtowerReplica(arguments.settings(), "tower").run, args=(stop,))
    tower.start()
    try:
        async with open_client(arguments) as client:
            await change(client, "promote", version=second, share=0.5)
            viewers = iter(range(100_000))

            async def rolled_back() -> bool:
                for viewer in itertools.islice(viewers, 20):
                    answer = await client.get("/v1/home", params={"profile_id": f"v{viewer}", "rows": 1})
                    assert (answer.status_code, answer.json()["versions"]["model"]) == (200, first)
                return len(await roles(client)) == 1 and (await latest())["action"] != "promote"

            async def latest() -> dict[str, Any]:
                changes: list[dict[str, Any]] = (await client.get("/v1/models/recommend/changes")).json()["changes"]
                return changes[0]

            await eventually(rolled_back)
            made = await latest()
            assert (made["action"], made["by"], made["evidence"]["metric"]) == ("rollback", "playhead", "errors")
    finally:
        stop.set()
        tower.join(20)


async def test_a_challenger_that_hangs_is_charged_and_costs_no_page(
    arguments: Arguments,
    open_client: OpenClient,
    versions: tuple[str, str],
    store: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = versions
    answer_of = Ranker.home
    hanging = {second}

    async def home(self: Ranker, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        if self.version in hanging:
            await asyncio.sleep(60)
        return await answer_of(self, profile, query)

    monkeypatch.setattr(Ranker, "home", home)
    async with open_client(arguments) as client:
        await change(client, "promote", version=second, share=0.5)

        async def loaded() -> bool:
            return [state for *_, state in await roles(client)] == ["live", "live"]

        await eventually(loaded)
        plan = load_plan(store.get(plan_key("recommend")))  # type: ignore[arg-type]
        arms = {name: assign(plan, name).challenged for name in NAMES[:12]}

        async def ask(name: str, within_s: float) -> httpx.Response:
            headers = {"X-Request-Timeout-Seconds": f"{within_s:g}"}
            return await client.get("/v1/home", params={"profile_id": name, "rows": 1}, headers=headers)

        pages = [answer.json() for answer in await asyncio.gather(*[ask(name, 30) for name in arms])]
        assert [page["versions"] for page in pages] == [{"model": first}] * len(arms)
        hanging.add(first)
        charged: Counter[str] = Counter()
        monkeypatch.setattr(
            ModelVitals,
            "decided",
            lambda _, version, total=1, failed=0, seconds=None: charged.update({version: failed}),
        )
        await asyncio.gather(*[ask(name, 2) for name in arms])
        assert charged == {second: sum(arms.values()), first: len(arms) - sum(arms.values())}
        await eventually(lambda: store.xlen(STREAM) >= 2 * len(arms))
    told: Any = store.xrange(STREAM)
    shown = [read_exposure(fields[FIELD]) for _, fields in told]
    assert [one["challenged"] for one in shown] == [arms[one["profile_id"]] for one in shown]
    assert {one["salt"] for one in shown} == {plan.salt}
    assert {one["assigned"] for one in shown} == {first, second}
    assert [one["failed"] for one in shown[: len(arms)]] == [one["challenged"] for one in shown[: len(arms)]]
    assert all(one["failed"] for one in shown[len(arms) :]), "the champion hung as well"
