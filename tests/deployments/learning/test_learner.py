"""The learner: one update at a time, taken up again where its process died, and by whoever holds the lease."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import redis

from deployments.learning.learner import ATTEMPTS, REFUSED, Learner
from deployments.learning.policy import LearningPolicy, Trigger
from features.events import Event
from features.settings import Settings
from features.stream import PLAYS, EventWriter
from serve.learning import STEPS, load_steps, state_key
from serve.rollout.board import plan_key
from serve.rollout.plans import RolloutPlan
from tests.waiting import wait_for

MODEL = "recommend"
START_MS = 1_790_000_000_000
POLICY = LearningPolicy(every_s=0, new_events=10, drift_events=5, least_events=5, rest_s=0)


class Bench:
    """A learner whose updates are processes that wait for a file to say how they end."""

    def __init__(self, settings: Settings, store: redis.Redis, folder: Path) -> None:
        self.settings, self.store, self.folder = settings, store, folder
        self.started: list[tuple[str, str]] = []
        self.drift_ms: int | None = None
        self.learners: list[Learner] = []

    def learner(self, name: str = "one") -> Learner:
        learner = Learner(self.settings, name, POLICY, self._start, lambda _store, _model: self.drift_ms)
        self.learners.append(learner)
        return learner

    def _start(self, model: str, update: str, trigger: Trigger) -> "subprocess.Popen[bytes]":
        assert model == MODEL
        self.started.append((update, trigger.cause))
        script = (
            "import pathlib, sys, time\npath = pathlib.Path(sys.argv[1])\nwhile not path.exists(): time.sleep(.01)\n"
            "sys.exit(int(path.read_text()))"
        )
        ending = self.folder / f"ending-{len(self.started)}"
        return subprocess.Popen([sys.executable, "-c", script, str(ending)])

    def end(self, status: int) -> None:
        fresh = self.folder / "fresh"
        fresh.write_text(str(status))
        fresh.rename(self.folder / f"ending-{len(self.started)}")

    def plays(self, count: int) -> None:
        self.store.incrby(PLAYS, count)

    def memory(self) -> dict[str, object]:
        found: dict[str, object] = orjson.loads(self.store.get(state_key(MODEL)))
        return found

    def turn_until(self, learner: Learner, happened: Callable[[], bool]) -> None:
        def turned() -> bool:
            learner._leases._renewed_s = 0.0
            learner.turn()
            return happened()

        wait_for(turned)


@pytest.fixture
def bench(settings: Settings, store: redis.Redis, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(settings, store, tmp_path)
    yield bench
    for learner in bench.learners:
        learner._end()
        learner._store.close()


def test_enough_new_plays_start_one_update_and_they_count_no_more(bench: Bench) -> None:
    learner = bench.learner()
    learner.turn()
    assert bench.memory()["update"] == ""
    bench.plays(9)
    learner.turn()
    assert not bench.started
    bench.plays(1)
    bench.turn_until(learner, lambda: len(bench.started) == 1)
    learner.turn()
    bench.end(0)
    bench.turn_until(learner, lambda: bench.memory()["update"] == "")
    assert bench.memory()["failed"] is False
    learner.turn()
    assert bench.started == [(bench.started[0][0], "events")], "nothing is new since"


async def test_what_is_only_shown_makes_no_update_due(bench: Bench) -> None:
    learner = bench.learner()
    learner.turn()
    writer = EventWriter(bench.settings)

    def told(kind: str, count: int) -> list[Event]:
        return [
            Event(event_id=f"{kind}{place}", profile_id=f"p{place}", title_id="t", kind=kind, ts=START_MS)
            for place in range(count)
        ]

    await writer.write([*told("impression", 90), *told("finish", 30), *told("play", 9)])
    await writer.write(told("play", 9))
    learner.turn()
    assert not bench.started
    await writer.write(told("play", 10))
    await writer.close()
    bench.turn_until(learner, lambda: len(bench.started) == 1)


def test_a_drift_counts_what_came_since_it_was_seen(bench: Bench) -> None:
    learner = bench.learner()
    learner.turn()
    bench.plays(4)
    bench.drift_ms = 123
    learner.turn()
    bench.plays(4)
    learner.turn()
    assert not bench.started, "8 plays are new, 4 since the drift"
    bench.plays(1)
    bench.turn_until(learner, lambda: bool(bench.started))
    assert bench.started[0][1] == "drift"


def test_an_update_that_failed_is_not_tried_again_at_once(bench: Bench) -> None:
    learner = bench.learner()
    learner.turn()
    bench.plays(10)
    bench.turn_until(learner, lambda: len(bench.started) == 1)
    bench.end(REFUSED)
    bench.turn_until(learner, lambda: bench.memory()["update"] == "")
    assert bench.memory()["failed"] is True
    learner.turn()
    assert len(bench.started) == 1


@pytest.mark.parametrize("status", [-9 % 256, 1], ids=["killed", "what nobody foresaw"])
def test_an_update_whose_process_dies_is_taken_up_under_its_name_and_given_up_in_the_end(
    bench: Bench, status: int
) -> None:
    learner = bench.learner()
    learner.turn()
    bench.plays(10)
    for attempt in range(1, ATTEMPTS + 1):
        bench.turn_until(learner, lambda attempt=attempt: len(bench.started) == attempt)
        bench.end(status)
    bench.turn_until(learner, lambda: bench.memory()["update"] == "")
    assert len(set(bench.started)) == 1
    assert bench.memory()["failed"] is True
    (told,) = load_steps(bench.store.xrange(STEPS))
    assert (told.update, told.name, told.moment) == (bench.started[0][0], "update", "failed")


def test_an_end_that_could_not_be_remembered_is_not_done_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = bench.learner()
    learner.turn()
    bench.plays(10)
    bench.turn_until(learner, lambda: len(bench.started) == 1)
    process = learner._running[MODEL]
    bench.end(0)
    process.wait(20)
    with monkeypatch.context() as patch:

        def lost(*_arguments: object) -> None:
            raise redis.ConnectionError

        patch.setattr(learner._store, "set", lost)
        with pytest.raises(redis.ConnectionError):
            learner.turn()
    bench.turn_until(learner, lambda: bench.memory()["update"] == "")
    assert len(bench.started) == 1


@pytest.mark.parametrize(
    "wrong", [{"trigger": {"cause": "drift", "of": "another version"}}, {"last_ms": "yesterday"}, {"update": 5}]
)
def test_a_memory_of_another_version_begins_anew(bench: Bench, wrong: dict[str, object]) -> None:
    learner = bench.learner()
    learner.turn()
    bench.store.set(state_key(MODEL), orjson.dumps({**bench.memory(), "update": "123", **wrong}))
    bench.turn_until(learner, lambda: bench.memory()["update"] == "")
    assert not bench.started


def test_another_learner_takes_up_what_went_on(bench: Bench) -> None:
    one, other = bench.learner("one"), bench.learner("other")
    one.turn()
    bench.plays(10)
    bench.turn_until(one, lambda: len(bench.started) == 1)
    other.turn()
    assert len(bench.started) == 1, "the lease is the first one's"
    one._end()
    one._leases.close()
    bench.turn_until(other, lambda: len(bench.started) == 2)
    assert bench.started[0] == bench.started[1]


def test_nothing_is_started_while_a_rollout_goes_on_or_its_plan_cannot_be_read(bench: Bench) -> None:
    plan = RolloutPlan(model=MODEL, champion="a" * 12)
    for dumped in (orjson.dumps(plan.begun("b" * 12, 0.1, 1).as_json()), b"{}"):
        learner = bench.learner(dumped[:9].hex())
        bench.store.delete(state_key(MODEL))
        bench.store.set(plan_key(MODEL), dumped)
        bench.turn_until(learner, lambda: bench.store.get(state_key(MODEL)) is not None)
        bench.plays(20)
        learner.turn()
        assert not bench.started
        learner._leases.close()


def test_a_store_that_was_lost_begins_anew(bench: Bench) -> None:
    learner = bench.learner()
    bench.plays(30)
    learner.turn()
    bench.store.delete(PLAYS)
    bench.plays(3)
    learner.turn()
    bench.plays(10)
    bench.turn_until(learner, lambda: len(bench.started) == 1)
