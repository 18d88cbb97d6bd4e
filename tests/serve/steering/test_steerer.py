"""Steering: who is moved, how many at a time, how fast back, and what happens when nothing is known."""

from typing import Any

import pytest

from serve.errors import InvalidInput
from serve.steering.clients import Client, SeenClients
from serve.steering.pathways import Pathway, Pathways
from serve.steering.steerer import Steerer, Steering
from tests.serve.steering.audience import START_MS, Audience, outage

TWO = Pathways(pathways=(Pathway(id="alpha"), Pathway(id="beta")))
THREE = Pathways(
    pathways=(
        Pathway(id="alpha", weight=2, capacity=0.8),
        Pathway(id="beta", weight=1, capacity=0.5),
        Pathway(id="gamma", weight=1, capacity=0.45),
    )
)
DOWN = outage(cdn="alpha")


def told(steerer: Steerer, now_ms: int = START_MS, session: str = "s1", **given: Any) -> Steering:
    return steerer.steer(Client(**{"session": session, "context": {}, **given}), now_ms)


def a_session_on(steerer: Steerer, pathway: str, **given: Any) -> str:
    return next(f"s{n}" for n in range(1000) if told(steerer, session=f"s{n}", **given).priority[0] == pathway)


def test_the_default_is_a_split_by_weight_that_does_not_move() -> None:
    audience = Audience(THREE, 2000)
    for _ in range(3):
        audience.look(after_s=30)
        audience.ask()
    assert audience.shares() == pytest.approx({"alpha": 0.5, "beta": 0.25, "gamma": 0.25}, abs=0.04)
    assert not audience.moves


def test_one_more_pathway_moves_only_the_sessions_that_it_gets() -> None:
    before, after = Steerer(TWO), Steerer(Pathways(pathways=(*TWO.pathways, Pathway(id="gamma"))))
    for number in range(300):
        first, then = (told(steerer, session=f"s{number}").priority[0] for steerer in (before, after))
        assert then in {first, "gamma"}


def test_every_answer_names_all_pathways_that_serve_the_client_once() -> None:
    config = Pathways(pathways=(Pathway(id="alpha"), Pathway(id="beta", only={"region": frozenset({"eu"})})))
    steerer = Steerer(config)
    assert set(told(steerer, context={"region": "eu"}).priority) == {"alpha", "beta"}
    assert set(told(steerer, context={}).priority) == {"alpha", "beta"}
    assert told(steerer, context={"region": "us"}).priority == ("alpha",)
    nowhere = Steerer(Pathways(pathways=(Pathway(id="beta", only={"region": frozenset({"eu"})}),)))
    assert told(nowhere, context={"region": "us"}).priority == ("beta",)


def test_a_failed_pathway_is_left_step_by_step_and_comes_last() -> None:
    audience = Audience(TWO)
    audience.ask()
    shares = [audience.shares()["alpha"]]
    for _ in range(4):
        audience.look([DOWN], after_s=10)
        audience.ask()
        shares.append(audience.shares()["alpha"])
    assert shares[0] == pytest.approx(0.5, abs=0.08)
    assert shares[1] == pytest.approx(0.25, abs=0.08)  # not everyone in one step
    assert shares[2:] == [0, 0, 0]
    assert max(audience.moves.values()) == 1
    assert told(audience.steerer, audience.now_ms).priority == ("beta", "alpha")
    assert told(audience.steerer, audience.now_ms, session=a_session_on(Steerer(TWO), "alpha")).ttl_s == 10


def test_steps_wait_for_each_other_however_often_there_is_news() -> None:
    audience = Audience(TWO)
    for _ in range(9):
        audience.look([DOWN], after_s=1)
    assert audience.steerer.plan.shares()["beta"] == pytest.approx(0.75)
    audience.look([DOWN], after_s=1)
    audience.look([DOWN], after_s=1)
    assert audience.steerer.plan.shares()["beta"] == pytest.approx(1)


def test_a_total_failure_is_spread_by_what_the_others_have_free() -> None:
    audience = Audience(THREE, 2000)
    audience.ask()
    for _ in range(20):
        audience.look([DOWN], after_s=10)
        audience.ask()
    planned = audience.steerer.plan.shares()
    assert planned == pytest.approx({"alpha": 0.05, "beta": 0.5, "gamma": 0.45})  # full; the rest has nowhere to go
    assert audience.shares() == pytest.approx(planned, abs=0.03)
    stuck = next(session for session, on in audience.on.items() if on == "alpha")
    assert told(audience.steerer, audience.now_ms, session=stuck, home="alpha", current="alpha").priority[0] == "alpha"


@pytest.mark.parametrize("slice_", [{"asn": "64500"}, {"app": "tv-9.2"}, {}, {"cdn": "unknown"}])
def test_an_outage_of_no_pathway_moves_nobody(slice_: dict[str, str]) -> None:
    audience = Audience(TWO, context={"asn": "64500", "app": "tv-9.2"})
    audience.ask()
    for _ in range(10):
        audience.look([outage(**slice_)], after_s=10)
        audience.ask()
    assert not audience.moves
    assert told(audience.steerer, audience.now_ms).ttl_s == TWO.ttl_s


def test_only_clients_that_the_outage_covers_are_moved() -> None:
    steerer = Steerer(TWO)
    for step in range(8):
        now_ms = START_MS + step * 10_000
        steerer.update([outage(cdn="alpha", region="eu", protocol="hls")], as_of_ms=now_ms, now_ms=now_ms)
    session = a_session_on(Steerer(TWO), "alpha")
    here = {"region": "eu", "protocol": "hls", "asn": "64500"}
    assert told(steerer, now_ms, session=session, context=here, home="alpha").priority == ("beta", "alpha")
    for elsewhere in ({"region": "us", "protocol": "hls"}, {"region": "eu", "protocol": "dash"}, {"region": "eu"}, {}):
        assert told(steerer, now_ms, session=session, context=elsewhere, home="alpha").priority[0] == "alpha"


def test_a_region_is_moved_by_its_own_size() -> None:
    config = Pathways(pathways=(Pathway(id="alpha", weight=8), Pathway(id="beta", weight=2, capacity=0.3)))
    steerer = Steerer(config)
    share_of = lambda inside: 0.1 if inside({"region": "eu"}) and not inside({}) else 1.0
    steerer.update([outage(cdn="alpha", region="eu")], as_of_ms=START_MS, now_ms=START_MS, share_of=share_of)
    assert steerer.plan.shares() == pytest.approx({"alpha": 0.72, "beta": 0.28})
    assert steerer.plan.detours[0].moved == 1


def test_measured_load_counts_where_it_is_more_than_planned() -> None:
    steerer = Steerer(TWO)
    steerer.update([DOWN], as_of_ms=START_MS, now_ms=START_MS, load={"beta": 0.9})
    assert steerer.plan.shares()["beta"] == pytest.approx(0.6)


def test_a_suspected_outage_keeps_new_sessions_away_and_moves_nobody() -> None:
    audience = Audience(TWO)
    audience.ask()
    audience.look([outage("suspected", cdn="alpha")], after_s=10)
    audience.ask()
    assert not audience.moves
    session = a_session_on(Steerer(TWO), "alpha")
    new = told(audience.steerer, audience.now_ms, session=session)
    assert (new.priority, new.home) == (("beta", "alpha"), "beta")
    audience.look([], after_s=60)
    later = told(audience.steerer, audience.now_ms, session=session, home=new.home, current="beta")
    assert later.priority[0] == "beta"  # it stays where it began


def test_of_new_sessions_no_more_are_kept_away_than_others_have_room_for() -> None:
    config = Pathways(pathways=(Pathway(id="alpha", weight=3), Pathway(id="beta", capacity=0.4)))
    steerer = Steerer(config)
    steerer.update([outage("suspected", cdn="alpha")], as_of_ms=START_MS, now_ms=START_MS)
    on_beta = sum(told(steerer, session=f"s{number}").priority[0] == "beta" for number in range(2000)) / 2000
    assert on_beta == pytest.approx(0.4, abs=0.04)


def test_a_player_that_left_by_itself_is_not_sent_back_into_the_outage() -> None:
    steerer = Steerer(THREE)
    steerer.update([DOWN], as_of_ms=START_MS, now_ms=START_MS)
    session = next(
        f"s{n}"
        for n in range(100)
        if told(steerer, session=f"s{n}", home="alpha", current="alpha").priority[0] == "alpha"
    )
    assert told(steerer, session=session, home="alpha", current="gamma").priority[0] == "gamma"


def test_recovery_follows_the_ramp() -> None:
    audience = Audience(TWO, 1000)
    audience.ask()
    for _ in range(3):
        audience.look([DOWN], after_s=10)
        audience.ask()
    since_s, seen = 0, []
    while since_s < 600:
        since_s += 5
        audience.look([], after_s=5)
        audience.ask()
        share = audience.shares()["alpha"]
        if share != (seen[-1][1] if seen else 0):
            seen.append((since_s, share))
    assert [when for when, _ in seen] == [120, 180, 240, 300]  # the hold, then a step a minute
    assert [share for _, share in seen] == pytest.approx([0.05, 0.125, 0.25, 0.5], abs=0.06)
    assert max(audience.moves.values()) == 2
    assert audience.steerer.plan.shares() == pytest.approx({"alpha": 0.5, "beta": 0.5})


def test_no_more_come_back_than_the_pathway_has_room_for() -> None:
    audience = Audience(TWO)
    for _ in range(3):
        audience.look([DOWN], after_s=10)
    audience.look([], after_s=120, load={"alpha": 0.98})  # by measurement others are there already
    (detour,) = audience.steerer.plan.detours
    assert (detour.moved, detour.level) == pytest.approx((0.96, 0.04))
    for _ in range(20):
        audience.look([], after_s=60)
    assert audience.steerer.plan.detours[0].level == 1


def test_while_an_outage_is_recovering_or_suspected_again_nobody_comes_back() -> None:
    for state in ("recovering", "suspected"):
        audience = Audience(TWO)
        for _ in range(3):
            audience.look([DOWN], after_s=10)
        for _ in range(100):
            audience.look([outage(state, cdn="alpha")], after_s=30)  # type: ignore[arg-type]
        assert audience.steerer.plan.shares()["alpha"] == pytest.approx(0)


def test_a_pathway_that_breaks_again_is_left_alone_twice_as_long_until_it_was_calm_for_long() -> None:
    audience = Audience(TWO)

    def absence_s() -> int:
        for _ in range(3):
            audience.look([DOWN], after_s=10)
        waited = 0
        while audience.steerer.plan.shares()["alpha"] < 0.01:
            audience.look([], after_s=10)
            waited += 10
        return waited

    assert [absence_s() for _ in range(4)] == [120, 240, 480, 960]
    for _ in range(1000):
        audience.look([], after_s=10)
    assert not audience.steerer.plan.detours
    assert absence_s() == 120


def test_a_wider_outage_keeps_a_narrower_detour_and_a_narrower_one_lets_the_rest_back() -> None:
    audience = Audience(TWO)
    for _ in range(3):
        audience.look([outage(cdn="alpha", region="eu")], after_s=10)
    for _ in range(30):
        audience.look([DOWN], after_s=10)
    session = a_session_on(Steerer(TWO), "alpha")
    for region in ("eu", "us"):
        assert (
            told(audience.steerer, audience.now_ms, session=session, context={"region": region}).priority[0] == "beta"
        )
    for _ in range(60):
        audience.look([outage(cdn="alpha", region="eu")], after_s=10)
    assert told(audience.steerer, audience.now_ms, session=session, context={"region": "us"}).priority[0] == "alpha"
    assert told(audience.steerer, audience.now_ms, session=session, context={"region": "eu"}).priority[0] == "beta"


def test_with_everything_broken_everyone_stays_and_is_answered() -> None:
    audience = Audience(TWO)
    audience.ask()
    for _ in range(5):
        audience.look([DOWN, outage(cdn="beta")], after_s=10)
        audience.ask()
    assert not audience.moves


def test_stale_news_changes_nothing_and_the_ttl_is_the_default() -> None:
    audience = Audience(TWO)
    for _ in range(3):
        audience.look([DOWN], after_s=10)
    before = audience.steerer.state()
    session = a_session_on(Steerer(TWO), "alpha")
    later_ms = audience.now_ms + 3_600_000
    audience.steerer.update([], as_of_ms=audience.now_ms + 1, now_ms=later_ms)
    assert audience.steerer.state() == before
    last = told(audience.steerer, later_ms, session=session, home="alpha", current="beta")
    assert (last.priority, last.ttl_s, last.stale) == (("beta", "alpha"), TWO.ttl_s, True)
    fresh = told(Steerer(TWO), later_ms, session=session)
    assert (fresh.priority[0], fresh.ttl_s, fresh.stale) == ("alpha", TWO.ttl_s, True)


def test_state_from_a_clock_that_is_ahead_is_gone_on_from_now() -> None:
    ahead = Audience(TWO)
    ahead.now_ms += 3_600_000
    ahead.look([DOWN])
    ahead.look([DOWN], after_s=10)
    here = Audience(TWO)
    here.steerer = Steerer.from_state(TWO, ahead.steerer.state())
    moved = [here.steerer.plan.detours[0].moved]
    for after_s in (0, 119, 2):
        here.look(after_s=after_s)
        moved.append(here.steerer.plan.detours[0].moved)
    assert moved == pytest.approx([1, 1, 1, 0.9])


def test_an_outage_that_is_over_moves_nobody_more_though_it_was_confirmed_at_the_same_time() -> None:
    audience = Audience(TWO)
    audience.look([DOWN])
    audience.now_ms += 10_000
    ended = audience.steerer.state()
    ended["detours"][0]["confirmed_ms"] = audience.now_ms
    audience.steerer = Steerer.from_state(TWO, ended)
    audience.look([])
    assert audience.steerer.plan.detours[0].moved == pytest.approx(0.5)


def test_state_of_another_configuration_loses_what_is_gone_and_nonsense_is_refused() -> None:
    audience = Audience(THREE)
    for _ in range(3):
        audience.look([DOWN, outage(cdn="beta", region="eu")], after_s=10)
    state = audience.steerer.state()
    restored = Steerer.from_state(TWO, state)
    assert {one.pathway for one in restored.plan.detours} <= {"alpha", "beta"}
    assert all(band.to.keys() <= {"alpha", "beta"} for one in restored.plan.detours for band in one.bands)
    assert told(restored, audience.now_ms).priority
    for broken in ({}, {**state, "version": 2}, {**state, "detours": [{}]}, {**state, "troubles": 3}):
        with pytest.raises(InvalidInput, match="steering state"):
            Steerer.from_state(THREE, broken)


def test_a_sample_of_clients_tells_shares_in_bounded_memory_and_counts_none_twice() -> None:
    seen = SeenClients(most=500, least=100)
    assert seen.share(lambda _: False) == 1
    assert seen.load() == {}
    for number in range(20_000):
        eu = number % 4 == 0
        client = Client(
            session=f"s{number}", context={"region": "eu" if eu else "us"}, current="alpha" if number % 2 else "beta"
        )
        for _ in range(5 if eu else 1):
            seen.note(client, START_MS + number)
    assert len(seen._seen) <= 500
    assert seen.share(lambda context: context["region"] == "eu") == pytest.approx(0.25, abs=0.08)
    assert seen.load() == pytest.approx({"alpha": 0.5, "beta": 0.5}, abs=0.08)
    seen.forget(START_MS + 10_000_000)
    assert seen.load() == {}
