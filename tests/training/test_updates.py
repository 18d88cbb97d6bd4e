"""Whole updates with real parts: a store, an event log, a Ray, a gate. Here because of its Ray."""

import asyncio
import functools
import shutil
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import polars as pl
import pytest
import redis

from deployments.learning.policy import LearningPolicy, Trigger
from deployments.learning.update import Update
from features.events import Event
from features.settings import Settings
from features.sink import LogSink
from features.stream import EventWriter
from serve.artifacts import set_champion
from serve.learning import STEPS, load_steps
from serve.rollout.board import load_plan, plan_key
from serve.rollout.verdicts import GateVerdict, verdict_key
from tests.deployments.conftest import Notices
from training.checks import DataRefused
from training.data_profiles import profile_path
from training.datasets.dataset import write_dataset
from training.datasets.synthetic import generate
from training.recommend import pipeline
from training.recommend.model import Retrieval
from training.recommend.pipeline import train_recommend
from training.recommend.train import FitSettings
from training.registry import Registry

MODEL, BASE = "recommend", "mine"
QUICK = FitSettings(epochs=8, patience=8, warmup=10, batch=32)
STEPS_OF_ALL = ("update", "snapshot", "checks", "training", "gate", "rollout")


class Past:
    """An audience, and two champions that know little of it: what they learned from has its titles mixed up."""

    def __init__(self, folder: Path) -> None:
        made = generate(profiles=250, titles=400, events=12_000, seed=5, as_of_ms=time.time_ns() // 1_000_000)
        self.before, self.since = made.events[:6_000], made.events[6_000:]
        self.base, tables = folder / BASE, {"titles": made.titles, "profiles": made.profiles}
        write_dataset(self.base, source="a test", events=self.before, **tables)
        mixed = self.before.with_columns(pl.col("title_id").shuffle(seed=1))
        self._mixed = write_dataset(folder / "mixed", source="a test", events=mixed, **tables)
        self._folder = folder

    @functools.cached_property
    def champion(self) -> Path:
        return train_recommend(self._mixed.path, self._folder, settings=replace(QUICK, epochs=1), most_frames=200).path

    @functools.cached_property
    def deeper(self) -> Path:
        """One of another architecture."""
        usual = pipeline.playhead

        def made(*arguments: object, **options: object) -> Retrieval:
            return Retrieval(replace(usual(*arguments, **options).config, layers=3))

        with mock.patch.object(pipeline, "playhead", made):
            return train_recommend(
                self._mixed.path, self._folder, settings=replace(QUICK, epochs=1), most_frames=200
            ).path


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    return Past(tmp_path_factory.mktemp("past"))


class Place:
    """A Playhead of that audience."""

    def __init__(self, settings: Settings, store: redis.Redis, past: Past) -> None:
        self.settings, self.store, self.past = settings, store, past
        shutil.copytree(past.base, settings.datasets / BASE)
        self.notices = Notices()

    def crown(self, champion: Path) -> str:
        shutil.copytree(champion, self.settings.models / MODEL / champion.name)
        set_champion(self.settings.models, MODEL, champion.name)
        return champion.name

    def happen(self, events: pl.DataFrame) -> None:
        """What the service and its sink do with events."""

        async def write() -> None:
            writer = EventWriter(self.settings, deadline_ms=20_000)
            for part in events.iter_slices(1000):
                rows = part.to_dicts()
                await writer.write([Event(**{key: value for key, value in row.items() if value is not None})
                                    for row in rows])  # fmt: skip
            await writer.close()

        asyncio.run(write())
        sink = LogSink(self.settings, self.settings.home / "events", wait_ms=50)
        while sink.drain():
            pass
        sink.close()

    def update(self) -> Update:
        trigger = Trigger(cause="events", reason="a test")
        return Update(
            self.settings, self.store, LearningPolicy(), MODEL, "1800000000000", trigger, base=BASE,
            reporter=self.notices, options={"fitting": QUICK},
        )  # fmt: skip

    def told(self, moment: str) -> dict[str, str]:
        steps = load_steps(self.store.xrange(STEPS))
        return {step.name: step.text for step in steps if step.moment == moment}


@pytest.fixture
def place(settings: Settings, store: redis.Redis, past: Past, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("deployments.candidates.threads", lambda: 1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Place(settings, store, past)


def test_what_viewers_did_becomes_a_version_that_is_tried(small_ray, place: Place) -> None:
    first = place.crown(place.past.champion)
    place.happen(place.past.since)
    made = place.update().run()
    assert tuple(place.told("begun")) == STEPS_OF_ALL
    assert set(place.told("done")) == set(STEPS_OF_ALL)
    assert made.manifest.lineage.parent == first
    assert made.manifest.lineage.last_ts_ms > place.past.before["ts"].max()
    plan = load_plan(place.store.get(plan_key(MODEL)))
    assert (plan.champion, plan.challenger, plan.share) == (first, made.version, LearningPolicy().first_share)
    verdict = GateVerdict.load(place.store.get(verdict_key(MODEL, made.version)))
    assert verdict.passed
    assert not verdict.refusal(first)
    assert Registry.of(place.settings, {}).find(MODEL, made.version) is not None
    assert profile_path(place.settings, MODEL).is_file(), "the run after is compared with it"
    assert [one.phase for one in place.notices.told].count("checks") == 2, "data is checked once: begun and done"


def test_data_that_is_not_right_is_not_learned_from(place: Place) -> None:
    first = place.crown(place.past.champion)
    twice = place.past.since.with_columns(pl.col("event_id") + "-again")  # a player that sends all twice, with new ids
    place.happen(pl.concat([place.past.since, twice]))
    with pytest.raises(DataRefused):
        place.update().run()
    assert set(place.told("failed")) == {"update", "checks"}
    assert "training" not in place.told("begun")
    assert place.store.get(plan_key(MODEL)) is None
    assert [path.name for path in (place.settings.models / MODEL).glob("[0-9a-f]*[0-9a-f]")] == [first]


def test_weights_of_another_architecture_cost_no_update(small_ray, place: Place) -> None:
    """As after an upgrade: the champion answers as before, and the next version is trained cold."""
    first = place.crown(place.past.deeper)
    place.happen(place.past.since)
    made = place.update().run()
    assert made.manifest.lineage.parent == ""
    assert "cold" in place.told("begun")["training"]
    assert "another architecture" in place.told("begun")["training"]
    assert f"cold: the weights of {first}" in place.told("done")["training"]
    plan = load_plan(place.store.get(plan_key(MODEL)))
    assert (plan.champion, plan.challenger) == (first, made.version)
