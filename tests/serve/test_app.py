"""The graph in both placements: behind local handles in one process, and once on a real Ray with real HTTP."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from pydantic import ValidationError

from features.profiles import ProfileFeatures
from serve.arguments import Arguments
from serve.bitrate.observations import Observations
from serve.bitrate.schemas import SESSION_EXAMPLE
from serve.pages import MAIN_ROW
from serve.rollout import board
from serve.rollout.assignment import assign
from serve.rollout.exposures import FIELD, STREAM, read_exposure
from serve.rollout.plans import RolloutPlan
from serve.schemas import HomePage, HomeQuery
from serve.vitals import ModelVitals
from tests.conftest import free_port
from tests.serve.bitrate.small_policy import small_policy
from tests.serve.gateway.conftest import arguments, install_model, opened  # noqa: F401 - a fixture
from tests.waiting import eventually, wait_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray declares its configuration in a way that pydantic deprecates
    from ray import serve as ray_serve

    from serve.app import FeaturesReplica, PlannerReplica, RankerReplica, build


@pytest.fixture
def split(arguments: Arguments) -> Iterator[tuple[Arguments, Any, Any, Any]]:  # noqa: F811
    """Arguments, and handles of the features, ranking and planning stages."""
    assert arguments.home is not None
    install_model(arguments.home, small_policy(), "bitrate")
    asked = arguments.model_copy(update={"placement": "split", "stage_deadline_ms": 2000.0, "exploration": 0.2})
    handles = [
        ray_serve.run(
            ray_serve.deployment(stage, name=stage.__name__).bind(asked),
            name=stage.__name__,
            _local_testing_mode=True,
        )
        for stage in (FeaturesReplica, RankerReplica, PlannerReplica)
    ]
    yield asked, *handles
    for handle in handles[1:]:
        handle.close.remote().result(timeout_s=10)  # a local replica has no end of its own


async def page_of(client: httpx.AsyncClient, profile_id: str = "p1") -> HomePage:
    answer = await client.get("/v1/home", params={"profile_id": profile_id}, headers={"X-Request-ID": "one"})
    assert answer.status_code == 200, answer.text
    return HomePage.model_validate_json(answer.content)


async def play(client: httpx.AsyncClient, title_id: str) -> None:
    event = {"event_id": f"e-{title_id}", "profile_id": "p1", "title_id": title_id, "kind": "play"}
    answer = await client.post("/v1/events", json={"events": [event | {"ts": int(time.time() * 1000) - 3_600_000}]})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("placement", ["fused", "split"])
def test_the_graph_binds_its_stages(arguments: Arguments, placement: str) -> None:  # noqa: F811
    application = build(arguments.model_copy(update={"placement": placement}))
    bound = [
        argument for argument in application._bound_deployment.init_args if isinstance(argument, type(application))
    ]
    names = [application._bound_deployment.name, *(stage._bound_deployment.name for stage in bound)]
    assert names == (["Gateway"] if placement == "fused" else ["Gateway", "Features", "Ranker", "Planner"])


def test_arguments_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ValidationError, match="placment"):
        Arguments.model_validate({"placment": "fused"})


async def test_both_placements_make_the_same_page(
    arguments: Arguments,  # noqa: F811
    split: tuple[Arguments, Any, Any, Any],
) -> None:
    pages = []
    for given in ((arguments.model_copy(update={"exploration": 0.2}),), split):
        async with opened(*given) as client:
            await play(client, "t5")
            page = await page_of(client)
            assert page.degraded == ()
            assert page.rows[0].id == "continue_watching"
            assert page.rows[0].items[0].title_id == "t5"
            missing = await client.get("/v1/titles/absent/similar")
            assert (missing.status_code, missing.json()["errors"][0]["got"]) == (404, "'absent'")
            pages.append([(row.id, [item.title_id for item in row.items]) for row in page.rows])
    assert pages[0] == pages[1]


async def test_both_placements_explore_the_same_and_tell_what_they_showed(
    arguments: Arguments,  # noqa: F811
    split: tuple[Arguments, Any, Any, Any],
    store: redis.Redis,
) -> None:
    shown, told = [], []
    for given in ((arguments.model_copy(update={"exploration": 0.2}),), split):
        store.delete(STREAM)
        top: dict[str, list[str]] = {}
        async with opened(*given) as client:
            for number in range(40):
                request_id = f"r{number}"
                answer = await client.get(
                    "/v1/home", params={"profile_id": "p7", "items": 6}, headers={"X-Request-ID": request_id}
                )
                (row,) = (row for row in answer.json()["rows"] if row["id"] == MAIN_ROW)
                top[request_id] = [item["title_id"] for item in row["items"]]
        shown.append(top)
        entries = [read_exposure(fields[FIELD]) for _, fields in store.xrange(STREAM)]
        assert {entry["request_id"]: [title_id for title_id, _ in entry["slots"]] for entry in entries} == top
        told.append([(entry["slots"], entry["explored"]) for entry in entries])
    assert shown[0] == shown[1]
    assert told[0] == told[1]
    usual, _ = Counter(tuple(row) for row in shown[0].values()).most_common(1)[0]
    for slots, explored in told[0]:
        assert all((title_id != usual[slot]) == (slot == explored) for slot, (title_id, _) in enumerate(slots))
        for slot, (_, propensity) in enumerate(slots):
            assert (propensity < 0.2 / 6) if slot == explored else (propensity == pytest.approx(1 - 0.2 / 6))
    assert 2 < sum(explored is not None for _, explored in told[0]) < 20


async def test_both_placements_decide_the_same(split: tuple[Arguments, Any, Any, Any]) -> None:
    sessions = [SESSION_EXAMPLE | {"title_id": None, "buffer_s": place} for place in range(100)]
    answers = []
    for given in (split[:1], split):
        async with opened(*given) as client:
            answer = (await client.post("/v1/bitrate", json=sessions)).json()
            assert answer["versions"] == {"bitrate": small_policy().name}
            assert answer["degraded"] == []
            answers.append(answer["decisions"])
    assert answers[0] == answers[1]


async def test_a_planner_that_does_not_answer_costs_the_plan(split: tuple[Arguments, Any, Any, Any]) -> None:
    asked = split[0].model_copy(update={"stage_deadline_ms": 50.0})
    slow = ray_serve.run(ray_serve.deployment(SlowPlanner).bind(), name="SlowPlanner", _local_testing_mode=True)
    async with opened(asked, *split[1:3], slow) as client:
        answer = await client.post("/v1/bitrate", json=SESSION_EXAMPLE | {"title_id": None})
        assert answer.status_code == 200
        assert (answer.json()["degraded"], answer.json()["versions"]) == (["planner_timeout"], {})


class SlowPlanner:
    async def plan(self, observations: Observations, units: list[str | None]) -> None:
        await asyncio.sleep(30)

    async def model_states(self) -> tuple[()]:
        return ()


async def test_models_of_the_remote_stages_are_told(split: tuple[Arguments, Any, Any, Any]) -> None:
    async with opened(*split) as client:

        async def told() -> dict[str, str]:
            return {model["name"]: model["state"] for model in (await client.get("/v1/models")).json()["models"]}

        async def all_told() -> bool:
            return list((await told()).values()) == ["live", "live", "missing", "missing"]

        await eventually(all_told)
        assert list(await told()) == ["recommend", "bitrate", "quality", "detectors"]


SERVE_SCRIPT = """
import json, sys
import ray
from ray import serve
from serve.app import build
from serve.arguments import Arguments
from serve.bitrate.observations import Observations
from serve.bitrate.schemas import SESSION_EXAMPLE

arguments = Arguments.model_validate_json(sys.argv[1])
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build(arguments), name="playhead")
print("up", flush=True)
for line in sys.stdin:
    name = line.strip()
    replicas = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if f"#{name}#" in actor["name"]]
    for replica in replicas:
        ray.kill(ray.get_actor(**replica), no_restart=True)
    print(json.dumps(len(replicas)), flush=True)
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.stack
@pytest.mark.timeout(240)
def test_on_a_real_ray_a_dead_ranker_costs_the_ranking_and_not_the_answer(arguments: Arguments) -> None:  # noqa: F811
    asked = arguments.model_copy(update={"placement": "split", "stage_deadline_ms": 300.0})
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVE_SCRIPT, asked.model_dump_json(), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while (line := process.stdout.readline()) != "up\n":
            assert line, "Serve did not come up"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

            def page() -> HomePage:
                answer = client.get("/v1/home?profile_id=p1", headers={"x-request-id": "r-7"})
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-request-id"] == "r-7"
                return HomePage.model_validate_json(answer.content)

            wait_for(lambda: page().degraded == ("unknown_profile",))
            process.stdin.write("Ranker\n")
            process.stdin.flush()
            assert int(process.stdout.readline()) == 1
            degraded = set()
            for _ in range(5):
                started = time.monotonic()
                found = page()
                assert time.monotonic() - started < 1.0, "a dead stage held the answer up"
                assert found.rows, "the stand-in made no page"
                degraded |= set(found.degraded)
            assert degraded & {"ranker_timeout", "ranker_unreachable"}
            wait_for(lambda: page().degraded == ("unknown_profile",), pause_s=0.2)  # Serve starts another replica
            refused = client.post("/v1/events", content=b"{", headers={"content-type": "application/json"})
            assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


class HungRanker:
    """A stage with versions, none of which answers."""

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> None:
        await asyncio.sleep(30)

    async def model_states(self) -> tuple[()]:
        return ()


async def test_a_ranking_stage_that_hangs_is_charged_to_whose_page_it_was(
    split: tuple[Arguments, Any, Any, Any], store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = "a" * 12, "b" * 12
    plan = RolloutPlan(model="recommend", champion=first).begun(second, 0.5, 1)
    store.execute_command("EVAL", *board.change_arguments(plan, {"action": "test"}))
    charged: Counter[str] = Counter()
    monkeypatch.setattr(
        ModelVitals, "decided", lambda _, version, total=1, failed=0, seconds=None: charged.update({version: failed})
    )
    asked = split[0].model_copy(update={"stage_deadline_ms": 30.0})
    hung = ray_serve.run(ray_serve.deployment(HungRanker).bind(), name="HungRanker", _local_testing_mode=True)
    names = [f"p{number}" for number in range(16)]
    arms = {name: assign(plan, name).challenged for name in names}
    async with opened(asked, split[1], hung, split[3]) as client:
        pages = [await page_of(client, name) for name in names]
        assert all({"ranker_timeout", "ranker_unreachable"} & set(page.degraded) for page in pages)
        await eventually(lambda: store.xlen(STREAM) >= len(names))
        assert charged == {second: sum(arms.values()), first: len(arms) - sum(arms.values())}
        told: Any = store.xrange(STREAM)
        shown = [read_exposure(fields[FIELD]) for _, fields in told]
        assert {one["profile_id"]: one["challenged"] for one in shown} == arms
        assert all(one["failed"] and one["salt"] == plan.salt for one in shown)
        store.execute_command("EVAL", *board.change_arguments(plan.rolled_back(2), {"action": "test"}))

        async def uncharged() -> bool:
            charged.clear()
            await page_of(client, next(name for name in names if arms[name]))
            return not charged[second]

        await eventually(uncharged)
