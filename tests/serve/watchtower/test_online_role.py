"""The role that measures what answers: each page and outcome once, whoever has the role, and what is written of it."""

import math
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow.parquet as pq
import pytest
import redis

from features.settings import Settings
from features.titles import Title
from serve.artifacts import Manifest
from serve.online.board import drift_key, online_key, read_drift, read_online
from serve.online.pages import page_key
from serve.rollout import board as rollouts
from serve.rollout.exposures import FIELD, FINISHED, PLAYED, SHOWN, STREAM, THUMBS_UP
from serve.rollout.plans import RolloutPlan
from serve.watchtower.board import ONLINE_ROLE
from serve.watchtower.leases import LeaseLost, Leases
from serve.watchtower.roles.online import OnlineRole
from tests.contracts.small_model import resealed, small_artifact
from training.recommend.reference import reference_of

T0 = 1_790_000_000_000
NOTE: dict[str, Any] = {"action": "test", "by": "test", "reason": "", "evidence": {}}
TITLES = [Title(title_id=f"t{n}", name=f"T{n}", genres=("Drama" if n % 2 else "Comedy",)) for n in range(8)]


def events(count: int = 800) -> pl.DataFrame:
    """Plays of all titles alike, by forty profiles, one an hour."""
    numbers = range(count)
    return pl.DataFrame({
        "event_id": [f"e{n}" for n in numbers], "profile_id": [f"p{n % 40}" for n in numbers],
        "title_id": [f"t{n * 7 % 8}" for n in numbers], "kind": "play",
        "ts": [T0 - 3_600_000 * (count - n) for n in numbers],
    })  # fmt: skip


def install(settings: Settings) -> str:
    """A version of the model `recommend` with a reference; its name."""

    def change(path: Path, manifest: Manifest) -> Manifest:
        files = dict(manifest.files)
        for name, table in reference_of(events(), TITLES).items():
            pq.write_table(table, path / f"{name}.parquet")
            files[f"{name}.parquet"] = "0" * 64
        return manifest.model_copy(update={"name": "recommend", "files": files})

    folder = settings.models / "recommend"
    folder.mkdir(parents=True, exist_ok=True)
    return resealed(small_artifact(), folder, change).name


class Clock:
    """A role with a clock of its own, and what it reads."""

    def __init__(self, store: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.settings = store, settings
        self.now_ms, self.told = T0, 0
        monkeypatch.setattr("serve.watchtower.roles.online.store_ms", lambda _: self.now_ms)
        self.champion = install(settings)
        plan = RolloutPlan(model="recommend", champion=self.champion)
        assert store.execute_command("EVAL", *rollouts.change_arguments(plan, NOTE, after=0))
        self.leases = Leases(store, "only", [ONLINE_ROLE])
        self.begin()

    def begin(self) -> None:
        self.leases._renewed_s = 0.0
        self.leases.tick()
        self.role = OnlineRole(self.store, self.leases, self.leases.held[ONLINE_ROLE], self.settings)

    def tell(self, *exposures: dict[str, Any]) -> None:
        for one in exposures:
            self.told += 1
            self.store.xadd(STREAM, {FIELD: orjson.dumps({"ts": self.now_ms, "profile_id": "p1", **one})},
                            id=f"{self.now_ms}-{self.told}")  # fmt: skip

    def page(self, request: str, **values: Any) -> None:
        self.tell({
            "kind": SHOWN, "request_id": request, "model": "recommend", "version": self.champion, "seconds": 0.002,
            "rows": [["continue_watching", ["t9"]], ["top_picks", ["t1", "t2", "t3"]]], "visits": 4, "gap_s": 7200,
            "chances": [0.9, 0.4, 0.2, None], **values,
        })  # fmt: skip

    def outcome(
        self, request: str, title: str, kind: str = PLAYED, rank: int | None = None, profile: str = "p1"
    ) -> None:
        self.tell({"kind": kind, "request_id": request, "title_id": title, "rank": rank, "profile_id": profile})

    def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ms += 1_000
            if self.now_ms % 5_000 == 0:
                self.store.set("playhead:watchtower:lease:online", self.leases.held[ONLINE_ROLE].token)  # it lives
            self.role.step()

    def figures(self, version: str | None = None) -> dict[str, Any]:
        found = read_online(self.store, "recommend")
        assert found is not None
        figures: dict[str, Any] = found["versions"][version or self.champion]
        return figures


@pytest.fixture
def clock(store: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(store, settings, monkeypatch)


def test_figures_are_of_what_was_told(clock: Clock) -> None:
    for number in range(10):
        clock.page(f"r{number}", degraded=number == 0)
    clock.outcome("r1", "t2", rank=1)
    clock.outcome("r1", "t2", rank=1)  # sent again
    clock.outcome("r1", "t1", rank=0)  # another title of the page
    clock.outcome("r2", "t9", rank=0)  # no title that the model ranked
    clock.outcome("r1", "t2", FINISHED)
    clock.outcome("r1", "t2", THUMBS_UP)
    clock.outcome("unknown", "t2")
    clock.pass_s(12)
    found = clock.figures()
    assert found["role"] == "champion"
    assert (found["pages"], found["plays"], found["finished"], found["thumbs_up"]) == (10, 3, 1, 1)
    assert found["play_rate"]["value"] == pytest.approx(0.2)
    assert found["play_rate"]["low"] < 0.2 < found["play_rate"]["high"]
    ranks = {one["rank"]: one for one in found["ctr_by_rank"]}
    assert {rank: (round(one["value"] * one["n"]), one["n"]) for rank, one in ranks.items()} == {
        0: (2, 20), 1: (1, 10), 2: (0, 10),
    }  # fmt: skip
    assert found["hr@10"]["value"] == pytest.approx(0.5), "of two first plays one was ranked"
    assert found["ndcg@10"]["value"] == pytest.approx((1 / math.log2(3)) / 2)
    assert found["degraded_share"]["value"] == pytest.approx(0.1)
    assert found["ranker_p99_s"] == pytest.approx(0.002, rel=0.03)
    assert found["coverage"] == 1.0, "four titles shown of a version that knows two"
    assert found["novelty_bits"] == pytest.approx((3 * 3.0 + math.log2(800 + 8 + 1)) / 4, abs=0.1)
    calibration = found["calibration"]
    assert (calibration["n"], calibration["predicted"]) == (20, pytest.approx(0.3)), (
        "t3 has no chance, t9 is not ranked"
    )
    assert calibration["observed"] == pytest.approx(2 / 20)
    hour = read_online(clock.store, "recommend")["windows"][1]
    assert (hour["window_s"], hour["versions"][clock.champion]["pages"]) == (3_600, 10)
    assert 0 < clock.store.ttl(online_key("recommend")) <= 600


def test_windows_slide(clock: Clock) -> None:
    clock.page("r1")
    clock.pass_s(300)
    clock.page("r2")
    clock.pass_s(12)
    assert clock.figures()["pages"] == 1
    assert read_online(clock.store, "recommend")["windows"][1]["versions"][clock.champion]["pages"] == 2


def test_nothing_counts_twice_when_the_role_is_taken_over(clock: Clock) -> None:
    for number in range(40):
        clock.page(f"r{number}")
        if number % 4 == 0:
            clock.outcome(f"r{number}", "t1", rank=0)
        if number % 3 == 0:  # whoever had it dies with what it had read since its last checkpoint
            clock.leases.close()
            clock.begin()
        clock.pass_s(2)
        if number % 8 == 0:
            clock.outcome(f"r{number}", "t1", rank=0)
    clock.pass_s(12)
    found = clock.figures()
    assert (found["pages"], found["plays"], found["hr@10"]["n"]) == (40, 10, 10)


def test_a_role_that_was_lost_writes_nothing(clock: Clock) -> None:
    clock.page("r1")
    clock.outcome("r1", "t1")
    clock.store.set("playhead:watchtower:lease:online", "another")
    clock.now_ms += 12_000
    with pytest.raises(LeaseLost):
        clock.role.step()
    assert read_online(clock.store, "recommend") is None
    assert orjson.loads(clock.store.get(page_key("r1")))["seen"] == []


def test_pages_wait_for_a_while_and_longer_once_they_were_played(clock: Clock) -> None:
    clock.page("r1")
    clock.page("r2")
    clock.outcome("r1", "t1")
    clock.pass_s(12)
    assert clock.store.ttl(page_key("r1")) > 1_800 >= clock.store.ttl(page_key("r2")) > 0


def test_versions_are_told_apart_and_what_is_no_exposure_is_left_out(clock: Clock, caplog: Any) -> None:
    clock.page("r1")
    clock.page("r2", version="b" * 12, challenged=True)
    clock.page("r3", version=None)
    clock.store.xadd(STREAM, {FIELD: b"{"}, id=f"{clock.now_ms + 1}-1")
    clock.now_ms += 2
    clock.outcome("r2", "t1")
    clock.pass_s(12)
    assert (clock.figures()["plays"], clock.figures("b" * 12)["plays"]) == (0, 1)
    other = clock.figures("b" * 12)
    assert (other["role"], other["coverage"], other["novelty_bits"]) == ("", None, None), "nothing is known of it"
    assert "is none was left out" in caplog.text
    assert "figures lack some" in caplog.text


def seconds_of(clock: Clock, count: int, title: int | None = None) -> None:
    """Seconds with five plays each, of all titles or of one."""
    for _ in range(count):
        for _ in range(5):
            number = clock.told
            profile, played = f"q{number}", f"t{number // 2 % 8 if title is None else title}"
            clock.page(f"r{number}", profile_id=profile, rows=[["top_picks", [played, "t1"]]], visits=10)
            clock.outcome(f"r{number}", played, profile=profile, rank=0)
        clock.pass_s(1)


def test_a_change_of_taste_drifts_and_another_champion_begins_anew(clock: Clock) -> None:
    clock.page("r0")
    seconds_of(clock, 115)
    told = read_drift(clock.store, "recommend")
    genre = {one["name"]: one for one in told["signals"]}["genre"]
    assert (told["version"], told["reference"], genre["state"]) == (clock.champion, True, "steady")
    begun_ms = clock.now_ms
    seconds_of(clock, 20)
    clock.leases.close()
    clock.begin()
    seconds_of(clock, 70, title=2)
    told = read_drift(clock.store, "recommend")
    genre = {one["name"]: one for one in told["signals"]}["genre"]
    assert (told["status"], genre["state"], genre["kind"], genre["from_start"]) == (
        "drifting",
        "drifting",
        "psi",
        False,
    )
    assert genre["value"] >= genre["bound"] == 0.25
    assert begun_ms < genre["since_ts"] <= clock.now_ms
    plan = rollouts.load_plan(clock.store.get(rollouts.plan_key("recommend")))
    assert clock.store.execute_command("EVAL", *rollouts.change_arguments(plan.crowned("b" * 12, clock.now_ms), NOTE))
    clock.page("r-b", version="b" * 12)
    clock.pass_s(12)
    told = read_drift(clock.store, "recommend")
    assert (told["version"], told["status"], told["reference"]) == ("b" * 12, "steady", False)
    assert 0 < clock.store.ttl(drift_key("recommend")) <= 600


def test_a_page_that_no_model_made_counts_for_whom_it_was_assigned_to(clock: Clock) -> None:
    clock.page("r1", version=None, assigned=clock.champion, failed=True, rows=[], chances=[])
    clock.outcome("r1", "t1")
    clock.pass_s(12)
    found = clock.figures()
    assert (found["pages"], found["plays"], found["failed_share"]["value"]) == (1, 1, 1.0)


def test_a_champion_that_comes_to_this_machine_later_gets_its_reference(clock: Clock, caplog: Any) -> None:
    folder = clock.settings.models / "recommend" / clock.champion
    away = folder.rename(folder.with_name("away"))
    clock.page("r1")
    clock.pass_s(90)
    told = read_drift(clock.store, "recommend")
    assert (told["version"], told["reference"]) == (clock.champion, False)
    assert clock.figures()["coverage"] is None
    assert caplog.text.count("figures lack some") == 1
    away.rename(folder)
    clock.pass_s(70)
    told = read_drift(clock.store, "recommend")
    assert (told["version"], told["reference"]) == (clock.champion, True)
    assert clock.figures()["coverage"] == 1.0
