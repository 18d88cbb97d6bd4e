"""The settings in force: followed between windows with nothing lost, kept where they can't be read, tried beside."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import pytest
import redis

from features.settings import Settings
from serve.artifacts import set_champion
from serve.rollout.board import change_arguments, plan_key
from serve.rollout.comparisons import compared_key
from serve.rollout.plans import RolloutPlan
from serve.telemetry.windows import WINDOW_MS, Window
from serve.watchtower import beside as beside_module
from serve.watchtower import board, versions
from serve.watchtower.alarms import Alarm
from serve.watchtower.beside import Beside, read_beside
from serve.watchtower.checkpoints import read_state
from serve.watchtower.leases import Leases
from serve.watchtower.networks import NetworkSums
from serve.watchtower.outages import Outage
from serve.watchtower.roles.outages import OutagesRole
from serve.watchtower.settings import DEFAULTS, MODEL, DetectorSettings
from serve.watchtower.slices import SliceWatch
from serve.watchtower.tracker import OutageTracker
from serve.watchtower.versions import TOLD, read_told
from tests.serve.watchtower.settings_versions import settings_version
from tests.serve.watchtower.test_tower import BROKEN_AT, T0, broken, windows

OVER_AT: Final = BROKEN_AT + 20
Seen = Sequence[tuple[Window, list[Alarm]]]


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Windows of an audience whose CDN `north` breaks for a while, and the signs in them."""
    watch = SliceWatch()
    stream = windows(OVER_AT + 50, broken(lambda leaf: leaf[0] == "north", OVER_AT, stalls=0.2, start_failures=0.3))
    return [(window, watch.see(window)) for window in stream]


@dataclass
class World:
    """The role, on a store to which sessions and slices have told all."""

    store: redis.Redis
    settings: Settings
    leases: Leases
    role: OutagesRole

    def restart(self) -> None:
        """Another replica takes the role over."""
        self.role = OutagesRole(self.store, self.leases, self.leases.held[board.OUTAGE_ROLE], self.settings)

    def steps(self, count: int) -> None:
        """Judge so many windows."""
        for _ in range(count):
            self.leases.tick()
            assert self.role.step()

    def rest(self) -> None:
        """Judge all that is left."""
        while self.role.step():
            self.leases.tick()

    def told(self) -> list[bytes]:
        """Each change of an outage."""
        found: Any = self.store.xrange(board.LOG)
        return [fields[board.CHANGE] for _, fields in found]

    def states(self) -> list[tuple[str | None, str, str]]:
        """Versions with role and state, as they are told."""
        dumped: Any = self.store.get(TOLD)
        return [(state.version, state.role, state.state) for state in read_told(dumped)]

    def plan(self, **fields: Any) -> None:
        """Make a plan the one in the store."""
        dumped: Any = self.store.get(plan_key(MODEL))
        revision = 0 if dumped is None else orjson.loads(dumped)["revision"]
        plan = RolloutPlan(model=MODEL, revision=revision + 1, **fields)
        assert self.store.eval(*change_arguments(plan, {"action": "test"}))

    def compared(self, **roles: str) -> list[dict[str, Any]]:
        """What is told of settings beside."""
        replicas: Any = self.store.hvals(compared_key(MODEL))
        return read_beside(replicas, roles)


@pytest.fixture
def world(store: redis.Redis, settings: Settings, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(board, "is_complete", lambda *_: True)
    monkeypatch.setattr(versions, "LOOK_S", 0.0)
    monkeypatch.setattr(versions, "RETRY_S", 0.0)
    store.set(board.BEGAN, T0)
    for window, signs in seen:
        store.hset(board.window_key(window.start_ms), "0", board.dump_window(window, NetworkSums()))
        told = {str(shard): b"[]" for shard in range(board.SHARDS)} | {"0": board.dump_alarms(signs)}
        store.hset(board.alarms_key(window.start_ms), mapping=told)
    leases = Leases(store, "only", [board.OUTAGE_ROLE])
    leases.tick()
    role = OutagesRole(store, leases, leases.held[board.OUTAGE_ROLE], settings)
    return World(store, settings, leases, role)


def expected(seen: Seen, *changes: tuple[int, DetectorSettings]) -> list[bytes]:
    """What a tracker tells whose settings are others from a window on."""
    tracker, told = OutageTracker(), list[Outage]()
    for place, (window, signs) in enumerate(seen):
        tracker.settings = dict(changes).get(place, tracker.settings)
        told += tracker.see(window, signs)
    return [board.dump_outage(outage) for outage in told]


def test_without_a_version_the_defaults_hold_and_the_checkpoint_is_as_before(world: World, seen: Seen) -> None:
    world.steps(len(seen))
    assert world.told() == expected(seen)
    assert world.states() == [(None, "champion", "missing")]
    state = read_state(world.store, board.OUTAGE_ROLE)
    assert state is not None
    assert set(state) == {"next", "tracker", "networks", "qoe"}


def test_a_champion_is_in_force_from_the_next_window_on_and_after_a_takeover(world: World, seen: Seen) -> None:
    models, changes = world.settings.models, {"recovering_after": 2, "closed_after": 8}
    first = OVER_AT - 5  # while the outage is open
    world.steps(first)
    version = settings_version(models, **changes)
    set_champion(models, MODEL, version)
    world.steps(1)
    assert world.states() == [(version, "champion", "live")]
    shutil.rmtree(models / MODEL)  # as on the machine of another replica
    world.restart()
    world.rest()
    other = DEFAULTS.model_copy(update=changes)
    assert world.told() == expected(seen, (first, other))
    assert world.told() != expected(seen)
    assert world.states()[0][0] == version


def test_windows_that_are_judged_again_are_judged_by_the_settings_that_they_had(world: World, seen: Seen) -> None:
    version = settings_version(world.settings.models, evidence=14.0, lasting_evidence=10.0, least_bad=50.0)
    world.steps(BROKEN_AT + 4)
    assert world.told(), "it is suspected by the defaults"
    world.plan(champion=version)
    world.steps(2)  # the first commits the change
    world.restart()
    assert world.role._versions.champion.version == version, "before it looks at the plan"
    world.rest()
    deaf = DEFAULTS.model_copy(update={"evidence": 14.0, "lasting_evidence": 10.0, "least_bad": 50.0})
    known = expected(seen, (BROKEN_AT + 4, deaf))
    assert list(dict.fromkeys(world.told())) == list(dict.fromkeys(known)), "nothing else is told, nor twice"


@pytest.mark.parametrize("damage", ["absent", "altered", "out of range", "plan"])
def test_what_cannot_be_used_changes_nothing_and_is_said(
    world: World, seen: Seen, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    models = world.settings.models
    good = settings_version(models, recovering_after=2, closed_after=8)
    bad = settings_version(models, **({"evidence": 99.0} if damage == "out of range" else {"evidence": 14.0}))
    world.plan(champion=good)
    world.steps(OVER_AT)
    manifest = models / MODEL / bad / "manifest.json"
    if damage == "absent":
        shutil.rmtree(models / MODEL / bad)
    elif damage == "altered":
        manifest.write_text(manifest.read_text().replace("14.0", "5.5"))
    with caplog.at_level(logging.ERROR):
        if damage == "plan":
            world.store.set(plan_key(MODEL), b"no plan")
        else:
            world.plan(champion=bad)
        world.steps(10)
    assert world.states()[0] == (good, "champion", "refused")
    assert caplog.text.count("cannot be used") == 1
    assert f"{good} stay in force" in caplog.text
    world.restart()
    world.rest()
    assert world.told() == expected(seen, (0, DetectorSettings(recovering_after=2, closed_after=8)))
    if damage == "absent":
        again = settings_version(models, evidence=14.0)
        assert again == bad
        world.role._follow()
        assert world.states() == [(bad, "champion", "live")], "it came later"


def test_what_is_tried_and_cannot_be_used_keeps_its_role(world: World) -> None:
    good = settings_version(world.settings.models, evidence=6.0)
    world.plan(challenger=good, share=0.01, started_ts=1, shadow="f" * 12)
    world.steps(1)
    assert world.states()[1:] == [(good, "challenger", "live"), ("f" * 12, "shadow", "refused")]


def test_a_challenger_is_compared_and_announces_nothing(world: World, seen: Seen) -> None:
    quick = settings_version(world.settings.models, confirmed_after=1, least_hurt=2.0, evidence=6.0)
    slow = settings_version(world.settings.models, confirmed_after=6, least_hurt=60.0)
    world.plan(challenger=quick, share=0.01, started_ts=1, shadow=slow)
    world.steps(BROKEN_AT + 8)
    world.restart()
    world.rest()
    assert world.told() == expected(seen), "the champion's alone"
    assert world.states()[1:] == [(quick, "challenger", "live"), (slow, "shadow", "live")]
    found = {one["version"]: one for one in world.compared(**{quick: "challenger", slow: "shadow"})}
    assert found[quick]["windows"] >= len(seen) - 6, "also those before the takeover"
    assert (found[quick]["both"], found[quick]["champion_only"]) == (1, 0)
    assert found[quick]["earlier_s"] >= WINDOW_MS / 1000
    assert found[slow]["both"] == 1
    assert found[slow]["earlier_s"] <= -3 * WINDOW_MS / 1000
    (call,) = [call for call in found[slow]["calls"] if call["champion"]["confirmed_ts"]]
    assert [call[who]["slice"] for who in ("champion", "other")] == [{"cdn": "north"}] * 2
    world.plan(champion=None)
    world.role._follow()
    assert world.states() == [(None, "champion", "missing")]


def test_settings_that_fail_or_open_too_much_are_given_up(
    world: World, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = settings_version(world.settings.models, evidence=6.0)
    monkeypatch.setattr(beside_module, "MOST_OPEN", 0)
    world.plan(challenger=version, share=0.01, started_ts=1)
    world.steps(len(seen))
    assert world.told() == expected(seen)
    assert world.states()[1] == (version, "challenger", "refused")
    (found,) = world.compared(**{version: "challenger"})
    assert "1 outages open at once, 0 are allowed" in found["given_up"]


def test_searches_that_settings_make_beside_are_few(seen: Seen) -> None:
    champion = OutageTracker(DetectorSettings(evidence=14.0, lasting_evidence=10.0, least_bad=50.0))
    free, bounded = champion.beside(DEFAULTS), champion.beside(DEFAULTS)
    opened: list[int] = []
    for window, signs in seen:
        champion.see(window, signs)
        bounded.judge(window.start_ms, signs, allowance=0)  # before others search the same window
        free.judge(window.start_ms, signs)
        opened.append(len(free.outages))
    assert max(opened) == 1
    assert bounded.left_out > 0
    assert bounded.outages == []


def outage(name: str, slice_: dict[str, str], at: int, state: Any = "confirmed", closed: int | None = None) -> Outage:
    return Outage(
        outage_id=name, state=state, slice=slice_, effects=(), started_ts=at, detected_ts=at, updated_ts=at,
        closed_ts=closed,
    )  # fmt: skip


def test_calls_about_the_same_are_paired_and_others_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Beside("a" * 12, DEFAULTS, OutageTracker(), T0)
    calls = {
        0: [outage("before", {}, T0 - 1)],
        1: [outage("x", {"cdn": "north"}, T0 + 5), outage("gone", {"region": "eu"}, T0 + 5, closed=T0 + 10)],
        4: [outage("y", {"device": "tv"}, T0 + 50)],
    }
    others = {
        3: [outage("z", {"cdn": "north", "region": "eu"}, T0 + 7)],
        5: [outage("late", {"region": "eu"}, T0 + 20), outage("w", {"app": "tv-1"}, T0 + 60, "suspected")],
    }
    for place in range(6):
        monkeypatch.setattr(OutageTracker, "judge", lambda *_, place=place: others.get(place, []))
        one.see(T0 + place * WINDOW_MS, [], calls.get(place, []))
    told = one.told()
    assert (told["both"], told["champion_only"], told["other_only"]) == (1, 2, 1)
    assert (told["earlier_s"], told["champion_suspicions"], told["other_suspicions"]) == (-20.0, 0, 1)
    again = Beside.from_state(orjson.loads(orjson.dumps(one.state())), OutageTracker())
    assert again.told() == told
