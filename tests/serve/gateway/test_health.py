"""Playhead watching itself, all of it: what a gateway counts, the Watchtower judges and GET /v1/models shows."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import redis

from features.profiles import ProfileFeatures
from features.settings import Settings
from serve.arguments import Arguments
from serve.bitrate.decisions import Decider
from serve.bitrate.planner import NoPlan, Plan
from serve.bitrate.sessions import Session
from serve.clock import now_ms
from serve.gateway.ops import Models
from serve.gateway.stages import ModelState, StageUnreachable
from serve.histograms import code_of, quantile, size
from serve.metrics import Metrics
from serve.schemas import Answer, HomePage, HomeQuery
from serve.vitals import SAMPLE_EVERY, WINDOW_MS, VersionCounts, Vitals, Window, window_key
from serve.watchtower import health
from serve.watchtower.health import Health, VersionHealth, dump_health
from serve.watchtower.replica import WatchtowerReplica
from tests.conftest import ValkeyProcess
from tests.serve.gateway.conftest import OpenClient, install_model
from tests.serve.quality.small_quality import small_quality
from tests.waiting import eventually

PAGES = 20
"""Pages a window."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.app.POLL_S", 0.02)
    monkeypatch.setattr("serve.app.LOOK_S", 0.02)


class Ranker:
    """A ranker whose version, time and faults are at hand."""

    def __init__(self) -> None:
        self.version = "old"
        self.ranker_ms = 1.0
        self.fails = self.is_gone = False

    async def home(self, profile: ProfileFeatures, query: HomeQuery) -> Answer:
        if self.is_gone:
            raise StageUnreachable("ranker_unreachable")
        return Answer(
            members=b'"profile_id":"p1","rows":[{"items":[{"score":null},{"score":0.5},{"score":-0.25}]}]',
            versions={"model": self.version},
            degraded=("model_failed",) if self.fails else (),
            generated_ts=1,
            timings_ms={"ranker": self.ranker_ms},
        )

    async def similar(self, title_id: str, query: HomeQuery) -> Answer:
        raise StageUnreachable("ranker_unreachable")

    def states(self) -> list[ModelState]:
        return [
            ModelState(name="recommend", version=self.version, loaded_ts=1, state="live"),
            ModelState(name="bitrate", version=None, loaded_ts=None, state="missing"),
        ]


class Clock:
    """The gateway's clock, turned on window by window through the hour past, so that no window need be waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = (now_ms() - 3_500_000) // WINDOW_MS * WINDOW_MS + 100
        for module in ("serve.vitals", "serve.gateway.health"):
            monkeypatch.setattr(f"{module}.now_ms", lambda: self.now_ms)

    @property
    def start_ms(self) -> int:
        """When the present window began."""
        return self.now_ms // WINDOW_MS * WINDOW_MS


class Played:
    """A gateway, the Watchtower and viewers, window by window."""

    def __init__(self, client: httpx.AsyncClient, store: redis.Redis, clock: Clock, tower: WatchtowerReplica) -> None:
        self.client = client
        self.store = store
        self.clock = clock
        self.tower = tower

    async def window(self) -> None:
        """PAGES pages, the end of the window, and what is said of it."""
        for _ in range(PAGES):
            assert (await self.client.get("/v1/home?profile_id=p1")).status_code == 200
        ended = self.clock.start_ms
        self.clock.now_ms += WINDOW_MS
        await eventually(lambda: self.store.exists(window_key(ended)))
        while (found := health.read_health(self.store)) is None or found.as_of_ms < ended + WINDOW_MS:
            self.tower.turn()
        await asyncio.sleep(0.03)

    async def model(self) -> dict[str, Any]:
        answer = await self.client.get("/v1/models")
        Models.model_validate_json(answer.content)
        found: dict[str, Any] = next(one for one in answer.json()["models"] if one["name"] == "recommend")
        return found

    async def until(self, state: str, within: int) -> dict[str, Any]:
        for _ in range(within):
            await self.window()
            told: dict[str, Any] = (await self.model())["health"]
            if told["state"] == state:
                return told
        raise AssertionError(told)


def feed(store: redis.Redis, clock: Clock, windows: int) -> None:
    """What another gateway counted of the version `old` before: all is well."""
    for _ in range(windows):
        told = Vitals()
        model = told.model("recommend", lambda: None)
        for number in range(PAGES):
            if model.decided("old", seconds=0.001 * (1.0 + 0.01 * number)):
                model.scored("old", 0.125)
        store.hset(window_key(clock.start_ms), "another", told.take().dump())
        clock.now_ms += WINDOW_MS


@pytest.mark.timeout(120)
async def test_a_slow_version_is_suspect_and_well_again_and_a_failing_new_one_is_suspect_alone(
    arguments: Arguments, open_client: OpenClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, clock, tower = Ranker(), Clock(monkeypatch), WatchtowerReplica(settings, "only")
    with redis.Redis.from_url(settings.redis_url) as store:
        feed(store, clock, 180)
        async with open_client(arguments, stages={"ranker": ranker, "models": ranker.states}) as client:
            played = Played(client, store, clock, tower)
            first = await played.model()
            assert (first["version"], first["health"]["state"], first["health"]["judged"]) == ("old", "unknown", False)
            assert (await client.get("/v1/models")).json()["models"][1]["health"] is None, "there is no version"
            for _ in range(3):
                await played.window()
            told = (await played.model())["health"]
            assert (told["state"], told["judged"], told["reasons"]) == ("ok", True, [])
            (slow,) = [one for one in told["readings"] if one["signal"] == "slow"]
            assert 0.001 < slow["threshold"] < 0.002
            assert slow["before_total"] > 1000, "another gateway's past counts here, too"

            ranker.ranker_ms = 5.0
            told = await played.until("suspect", 8)
            assert [reason.partition(":")[0] for reason in told["reasons"]] == ["slow"]
            text = (await client.get("/metrics")).text
            assert 'playhead_self_alarms_open{version="old",what="slow:recommend"} 1.0' in text
            ranker.ranker_ms = 1.0
            assert (await played.until("ok", 20))["reasons"] == []

            ranker.version, ranker.fails = "new", True
            told = await played.until("suspect", 8)
            assert [reason.partition(":")[0] for reason in told["reasons"]] == ["degraded"]
            ranker.version, ranker.fails = "old", False
            await played.window()
            assert (await played.model())["health"]["state"] == "ok", "the version before is not to blame"
            text = (await client.get("/metrics")).text
            assert 'playhead_self_alarms_total{version="new",what="degraded:recommend"} 1.0' in text
            assert 'playhead_self_alarms_total{version="old",what="slow:recommend"} 1.0' in text
            assert 'playhead_self_alarms_open{version="old",what="slow:recommend"} 0.0' in text
            assert 'playhead_refreshed_timestamp_seconds{part="health"}' in text

            clock.now_ms += health.STALE_MS
            assert (await played.model())["health"]["state"] == "unknown", "nobody has judged for a minute"
        changes = [
            health.load_change(fields[health.CHANGE])
            for _, fields in store.xrange(health.LOG)
            if b":recommend" in fields[health.CHANGE]
        ]
        assert [(one.what, one.version, one.is_open) for one in changes] == [
            ("slow:recommend", "old", True), ("slow:recommend", "old", False), ("degraded:recommend", "new", True)
        ]  # fmt: skip


async def taken(store: redis.Redis, clock: Clock) -> Window:
    """What the gateway wrote of the window that ends now."""
    ended = clock.start_ms
    clock.now_ms += WINDOW_MS
    await eventually(lambda: store.exists(window_key(ended)))
    (dumped,) = store.hvals(window_key(ended))
    return Window.load(dumped)


async def test_pages_of_a_real_ranker_are_counted(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with open_client(arguments) as client:
        with redis.Redis.from_url(arguments.settings().redis_url) as store:
            page = HomePage.model_validate_json((await client.get("/v1/home?profile_id=p1")).content)
            for _ in range(SAMPLE_EVERY - 1):
                await client.get("/v1/home?profile_id=p1")
            title = page.rows[0].items[0].title_id
            assert (await client.get(f"/v1/titles/{title}/similar")).status_code == 200
            assert (await client.get("/v1/titles/nothing/similar")).status_code == 404
            window = await taken(store, clock)
            home = window.routes["/v1/home"]
            assert (home.total, home.errors, home.degraded, size(home.seconds)) == (SAMPLE_EVERY, 0, 0, SAMPLE_EVERY)
            (told,) = window.models["recommend"].values()
            assert list(window.models["recommend"]) == [page.versions.model]
            assert (told.total, told.failed, size(told.seconds)) == (SAMPLE_EVERY + 1, 0, SAMPLE_EVERY)
            first = [item.score for row in page.rows for item in row.items if item.score is not None][:5]
            assert size(told.scores) == 1
            assert quantile(told.scores, 0.5) == pytest.approx(sum(first) / 5, rel=0.05)
            assert set(window.parts) == {"title_stats", "catalogue"}


async def test_what_a_ranker_fails_to_do_counts_for_the_version_that_should_have_answered(
    arguments: Arguments, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, clock = Ranker(), Clock(monkeypatch)
    async with open_client(arguments, stages={"ranker": ranker, "models": ranker.states}) as client:
        with redis.Redis.from_url(arguments.settings().redis_url) as store:
            ranker.fails = True
            await client.get("/v1/home?profile_id=p1")
            ranker.is_gone = True
            await client.get("/v1/home?profile_id=p1")
            await client.get("/v1/titles/1/similar")
            window = await taken(store, clock)
            assert window.models["recommend"] == {"old": VersionCounts(3, 3)}
            assert (window.routes["/v1/home"].degraded, window.routes["/v1/home"].errors) == (2, 0)
            assert window.routes["/v1/titles/{title_id}/similar"].errors == 1


class Planner:
    """A planner that plans the highest rung but for one session, or does not."""

    def __init__(self) -> None:
        self.reason = ""

    async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
        if self.reason:
            raise NoPlan(self.reason)
        rungs = [1] * (len(sessions) - 1) + [-1]
        nothing = [0.0] * len(sessions)
        return Plan("one", rungs, [0] * len(sessions), nothing, [[1.0, 1.0, 1.0]] * len(sessions))


class Nothing:
    """Lookups that know nothing."""

    async def fill(self, sessions: Sequence[Session], within_s: float) -> None:
        return


async def test_plans_are_counted() -> None:
    planner, told = Planner(), Vitals()
    decider = Decider(planner, Nothing(), Metrics(), told.model("bitrate", lambda: None))
    sessions = [Session(rungs_kbps=(300.0, 900.0, 1500.0), places=(0, 1, 2)) for _ in range(3)]
    for _ in range(SAMPLE_EVERY):
        await decider.decide(sessions, 1.0)
    planner.reason = "planner_timeout"
    await decider.decide(sessions, 1.0)
    known = told.take().models["bitrate"]["one"]
    assert (known.total, known.failed, size(known.seconds)) == (3 * SAMPLE_EVERY + 3, SAMPLE_EVERY + 3, SAMPLE_EVERY)
    assert known.scores == {code_of(0.5): 1}, "the place of the rung in its ladder"


async def test_estimates_are_counted(
    arguments: Arguments, open_client: OpenClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_model(settings.home, small_quality(), "quality")
    clock = Clock(monkeypatch)
    segment = {
        "codec": "h264", "width": 1280, "height": 720, "display_height": 1080, "fps": 25, "duration_s": 4,
        "size_bytes": 912345,
    }  # fmt: skip
    async with open_client(arguments) as client:
        with redis.Redis.from_url(settings.redis_url) as store:
            answer = await client.post("/v1/quality", json={"segments": [segment] * 3})
            assert answer.status_code == 200, answer.text
            (known,) = (await taken(store, clock)).models["quality"].values()
            assert (known.total, known.failed, size(known.seconds)) == (1, 0, 1)


async def test_what_was_known_stays_where_the_store_goes_and_what_is_no_health_is_left(
    arguments: Arguments, open_client: OpenClient, valkey_process: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = Ranker()
    version = VersionHealth(
        model="recommend", version="old", status="suspect", judged=True, reasons=("slow: much",), readings=()
    )
    told = Health(as_of_ms=now_ms(), versions=(version,), routes=(), parts=(), alarms=())
    own = arguments.model_copy(update={"redis_url": valkey_process.url})
    async with open_client(own, stages={"ranker": ranker, "models": ranker.states}) as client:

        async def state() -> str:
            found: str = (await client.get("/v1/models")).json()["models"][0]["health"]["state"]
            return found

        with redis.Redis.from_url(valkey_process.url) as store:
            store.set(health.HEALTH, dump_health(told))

            async def suspected() -> bool:
                return await state() == "suspect"

            await eventually(suspected)
            store.set(health.HEALTH, b'{"layout": 9}')
        await asyncio.sleep(0.1)
        assert await state() == "suspect"
        valkey_process.kill()
        await asyncio.sleep(0.1)
        assert await state() == "suspect"
        monkeypatch.setattr("serve.gateway.health.now_ms", lambda: told.as_of_ms + health.STALE_MS + 1)
        assert await state() == "unknown"
        ranker.version = "another"
        assert await state() == "unknown"
