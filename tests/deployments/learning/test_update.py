"""What an update holds out, when it may begin a rollout, and what it leaves on disk."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import orjson
import polars as pl
import pytest
import redis

from deployments.learning.policy import LearningPolicy, Trigger
from deployments.learning.update import Update
from features.settings import Settings
from serve.errors import InvalidInput
from serve.learning import STEPS, load_steps
from serve.rollout.board import load_plan, plan_key
from serve.rollout.plans import RolloutPlan
from training.datasets.dataset import write_dataset
from training.lineage import lineage_of
from training.retention import KEPT_SNAPSHOTS

MODEL, UPDATE = "recommend", "1800000000000"
A, B, C = "a" * 12, "b" * 12, "c" * 12
START = 1_790_000_000_000
STEP_MS = 1000


class Silent:
    """Told of everything, says nothing."""

    def tell(self, _notice: object) -> None:
        """Nothing."""


def update_of(settings: Settings, store: redis.Redis, since_ms: int | None = None, name: str = UPDATE) -> Update:
    trigger = Trigger(cause="drift" if since_ms else "events", reason="a test", since_ms=since_ms)
    return Update(settings, store, LearningPolicy(), MODEL, name, trigger, base="mine", reporter=Silent())


def tell_plan(store: redis.Redis, plan: RolloutPlan) -> None:
    store.set(plan_key(MODEL), orjson.dumps(plan.as_json()))


def champion_up_to(last_ms: int) -> Any:
    lineage = lineage_of(None, seed=0).model_copy(update={"last_ts_ms": last_ms})
    return SimpleNamespace(manifest=SimpleNamespace(lineage=lineage, created=datetime.now(UTC)))


@pytest.fixture
def plays(settings: Settings) -> list[int]:
    """Times of the base's plays."""
    times = [START + STEP_MS * place for place in range(3000)]
    events = pl.DataFrame(
        {
            "event_id": [f"e{place}" for place in range(3000)],
            "profile_id": [f"p{place % 100}" for place in range(3000)],
            "title_id": [f"t{place % 7}" for place in range(3000)],
            "kind": "play",
            "ts": times,
        }
    )
    titles = pl.DataFrame({"title_id": [f"t{place}" for place in range(7)], "name": "a title"})
    write_dataset(settings.datasets / "mine", source="a test", events=events, titles=titles)
    return times


def test_the_newest_of_what_the_champion_has_not_seen_is_held_out(
    settings: Settings, store: redis.Redis, plays: list[int]
) -> None:
    _, cut_ms, starts = update_of(settings, store)._snapshot(champion_up_to(plays[999]))
    assert (starts, cut_ms) == (600, plays[2400])


def test_a_drift_that_is_older_than_the_champion_holds_nothing_out_that_it_was_trained_on(
    settings: Settings, store: redis.Redis, plays: list[int]
) -> None:
    _, cut_ms, starts = update_of(settings, store, since_ms=plays[0])._snapshot(champion_up_to(plays[1799]))
    assert cut_ms > plays[1799]
    assert starts == 360
    _, cut_ms, starts = update_of(settings, store, since_ms=plays[999])._snapshot(champion_up_to(plays[0]))
    assert (starts, cut_ms) == (600, plays[2400])


def test_too_little_for_a_gate_is_told_before_anything_is_trained(
    settings: Settings, store: redis.Redis, plays: list[int]
) -> None:
    with pytest.raises(InvalidInput, match="held out"):
        update_of(settings, store)._snapshot(champion_up_to(plays[2100]))


def test_a_rollout_begins_only_beside_the_champion_that_the_gate_compared_with(
    settings: Settings, store: redis.Redis
) -> None:
    tell_plan(store, RolloutPlan(model=MODEL, champion=A).crowned(B, 1))
    update = update_of(settings, store)
    with pytest.raises(InvalidInput, match="answers now"):
        update._begin(C, A)
    assert load_plan(store.get(plan_key(MODEL))).challenger is None
    update._begin(C, B)
    begun = load_plan(store.get(plan_key(MODEL)))
    assert begun.challenger == C
    tell_plan(store, begun.shared(0.5, 2))
    with pytest.raises(InvalidInput, match="goes on"):
        update._begin(C, B)
    assert load_plan(store.get(plan_key(MODEL))).share == 0.5


def test_while_a_rollout_goes_on_nothing_is_begun(settings: Settings, store: redis.Redis, plays: list[int]) -> None:
    tell_plan(store, RolloutPlan(model=MODEL, champion=A).begun(B, 0.1, 1))
    with pytest.raises(InvalidInput, match="goes on"):
        update_of(settings, store).run()
    assert [(step.name, step.moment) for step in load_steps(store.xrange(STEPS))] == [
        ("update", "begun"), ("update", "failed"),
    ]  # fmt: skip


def test_an_update_that_was_done_is_known(settings: Settings, store: redis.Redis) -> None:
    update = update_of(settings, store)
    with update._step("update"), update._step("rollout"):
        assert not update.has_begun_rollout()
    assert update.has_begun_rollout()
    assert not update_of(settings, store, name="1800000000001").has_begun_rollout()


def test_an_update_prunes_and_is_not_held_up_by_what_cannot_be_pruned(
    settings: Settings, store: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{MODEL}-{1_700_000_000_000 + place}" for place in range(KEPT_SNAPSHOTS + 1)]
    for name in names:
        (settings.datasets / name).mkdir(parents=True)
    store.set(plan_key(MODEL), b"{}")
    update_of(settings, store)._prune()
    assert "nothing is pruned" in caplog.text
    assert len(list(settings.datasets.iterdir())) == KEPT_SNAPSHOTS + 1
    store.delete(plan_key(MODEL))
    update_of(settings, store)._prune()
    assert sorted(path.name for path in settings.datasets.iterdir()) == names[1:]
