"""Simulated rollouts of bitrate policies: decided as they should be, by sessions as the service counts them."""

import numpy as np
import pytest

from serve.rollout.decisions import STAGES
from serve.rollout.outcomes import Usual, kinds_of
from training.rollout.sessions import COUNTS, Audience, Playback, SessionEffect
from training.rollout.trials import POLICY_EFFECTS, roll_out_policy


@pytest.fixture(scope="module")
def audience():
    return Audience.draw(np.random.default_rng(0), 50_000)


def totals(audience, effect, *, minutes=30):
    windows = Playback(np.random.default_rng(1), audience, effect).stage(0.5)
    seen = [next(windows) for _ in range(12 * minutes)][120:]
    return {
        arm: {kind: sum(getattr(getattr(one, arm), kind) for one in seen) for kind in COUNTS}
        for arm in ("challenger", "champion")
    }


def test_a_policy_that_is_alike_is_promoted(audience):
    trial = roll_out_policy((0, 0), audience, SessionEffect())
    assert (trial.ended, trial.metric, trial.share) == ("promoted", None, STAGES[-1].share)
    assert trial == roll_out_policy((0, 0), audience, SessionEffect())


@pytest.mark.parametrize(
    ("name", "blamed"),
    [("rebuffering x2", "rebuffered"), ("VMAF -5", "low_quality"), ("start-up x1.5", "slow_starts"),
     ("failures x3", "failures")],
)  # fmt: skip
def test_harm_is_rolled_back(audience, name, blamed):
    trial = roll_out_policy((0, 1), audience, POLICY_EFFECTS[name])
    assert (trial.ended, trial.metric) == ("rolled_back", blamed)


def test_sessions_count_as_the_service_counts_them(audience):
    playback = Playback(np.random.default_rng(2), audience, SessionEffect())
    for known in (Usual(), playback._usual):
        ended = playback._chunk(0.5)
        for _ in range(5):
            playback._learn(ended)
        flags = ended.kinds(known)
        assert len(ended.at_s) > 1_000
        for place in range(len(ended.at_s)):
            counted = {kind for kind, found in flags.items() if found[place]}
            assert counted == set(kinds_of(ended.record(place), known))
    assert all(found.any() for found in flags.values())


def test_effects_are_the_challengers_alone(audience):
    alike = totals(audience, SessionEffect())
    shares = {kind: alike["champion"][kind] / alike["champion"]["requests"] for kind in COUNTS}
    assert 0.03 < shares["rebuffered"] < 0.15
    assert 0.05 < shares["low_quality"] < 0.2
    for name, kind, factor in [("rebuffering x2", "rebuffered", 1.5), ("VMAF -5", "low_quality", 1.3)]:
        worse = totals(audience, POLICY_EFFECTS[name])
        assert worse["challenger"][kind] > factor * alike["challenger"][kind]
        assert worse["champion"][kind] == pytest.approx(alike["champion"][kind], rel=0.1)
