"""The generator's incidents, and ours held to the bars on a seed that nothing was chosen on."""

import numpy as np
import pytest

from training.watchtower.incidents import LEVELS, incidents, members
from training.watchtower.localisation_comparison import compare, judge
from training.watchtower.public_incidents import PUBLIC, public_incidents
from training.watchtower.rivals import Verdict

HELD_OUT = 20_261_126
"""Used here and in docs/localisation.md only; constants were chosen on seeds 1-8, 11, 12, 31, 41 and 77."""
SMALL = tuple(level for level in LEVELS if level.name != "many leaves")


def pairs_of(incident, cause):
    at = {name: place for place, name in enumerate(incident.dimensions)}
    return tuple((at[name], incident.values[at[name]].index(value)) for name, value in cause.items())


@pytest.fixture(scope="module")
def drawn():
    return list(incidents(3, 3 * len(SMALL), levels=SMALL))


def test_the_same_seed_makes_the_same_incidents():
    ones, others = (list(incidents(5, 4)) for _ in range(2))
    for one, other in zip(ones, others, strict=True):
        assert one.causes == other.causes
        assert np.array_equal(one.bad, other.bad)
    assert not np.array_equal(ones[0].total[:, :500], next(incidents(6, 1)).total[:, :500])


def test_counts_and_sizes_are_as_the_levels_say(drawn):
    levels = {level.name: level for level in SMALL}
    for incident in drawn:
        level = levels[incident.level]
        assert level.dimensions[0] <= len(incident.dimensions) <= level.dimensions[1]
        assert len(incident.codes) <= level.leaves[1]
        assert level.windows[0] + 1 <= len(incident.total) <= level.windows[1] + 1
        assert (incident.bad >= 0).all()
        assert (incident.bad <= incident.total).all()
        assert len(np.unique(incident.codes, axis=0)) == len(incident.codes)
        assert len(incident.causes) == (level.causes if level.what == "slices" else 0)
        assert incident.external == (level.what == "external")
        assert all(len(cause) in level.depths for cause in incident.causes)


def test_causes_are_worse_than_before_and_what_is_no_cause_is_not(drawn):
    for incident in drawn:
        inside = np.zeros(len(incident.codes), dtype=bool)
        for cause in incident.causes:
            one = members(incident.codes, pairs_of(incident, cause))
            now, before = incident.bad[-1, one].sum(), incident.bad[:-3, one].sum()
            assert now / incident.total[-1, one].sum() > 1.5 * before / incident.total[:-3, one].sum()
            inside |= one
        rest = ~inside
        ratio = incident.bad[-1, rest].sum() / incident.total[-1, rest].sum()
        usual = incident.bad[:-3, rest].sum() / incident.total[:-3, rest].sum()
        if incident.external:
            assert ratio > 1.3 * usual
        elif incident.level != "traffic shift":
            assert 0.4 < ratio / usual < 2.0


def test_traffic_is_skewed_and_its_dimensions_depend_on_each_other(drawn):
    for incident in drawn[:6]:
        weight = incident.total[0]
        asn, region = (incident.codes[:, incident.dimensions.index(name)] for name in ("asn", "region"))
        sizes = np.sort(np.bincount(asn, weight))[::-1]
        assert sizes[: max(len(sizes) // 5, 1)].sum() > 0.4 * sizes.sum()
        joint = np.zeros((asn.max() + 1, region.max() + 1))
        np.add.at(joint, (asn, region), weight)
        assert joint.max(axis=1).sum() > 0.6 * joint.sum()


def test_a_frame_is_what_the_table_is_made_of(drawn):
    incident = drawn[0]
    table, frame = incident.table(), incident.frame()
    assert table.total.sum() == incident.total[-1].sum()
    assert table.bad.sum() == incident.bad[-1].sum()
    assert frame["total"].sum() == incident.total.sum()
    assert set(frame.columns) == {"timestamp", "total", "bad", *incident.dimensions}


def test_public_settings_are_those_of_the_paper():
    for incident, setting in zip(public_incidents(4, 3), PUBLIC, strict=True):
        assert len(incident.codes) == np.prod(setting.cards)
        assert 1 <= len(incident.causes) <= setting.anomalies[1] * setting.elements[1]
        assert (incident.bad <= incident.total).all()
        for cause in incident.causes:
            one = members(incident.codes, pairs_of(incident, cause))
            assert incident.bad[1, one].sum() > incident.bad[0, one].sum()


def test_judging():
    incident = next(incidents(5, 1))
    (cause,) = incident.causes
    wrong = {"cdn": "none"}
    assert judge(incident, Verdict(ranked=(cause,), causes=(cause,))) == (True, True, 1.0)
    assert judge(incident, Verdict(ranked=(wrong, cause), causes=(wrong, cause))) == (False, True, pytest.approx(2 / 3))
    assert judge(incident, Verdict()) == (False, False, 0.0)
    assert judge(incident, Verdict(ranked=(cause,), causes=(cause,), external=True)) == (False, False, 0.0)
    quiet = next(incidents(5, 1, levels=tuple(level for level in LEVELS if level.what == "quiet")))
    assert judge(quiet, Verdict()) == (True, True, 1.0)
    assert judge(quiet, Verdict(external=True))[0] is False


def test_the_bars_hold_on_a_seed_never_looked_at():
    """Top-1 of at least 85 %, top-3 of at least 95 %, on all levels together; no level hides behind the others."""
    report = compare(incidents(HELD_OUT, 4 * len(LEVELS)), methods=["playhead"])["playhead"]
    assert report["all"]["cases"] == 4 * len(LEVELS)
    assert report["all"]["top1"] >= 0.85
    assert report["all"]["top3"] >= 0.95
    for level in LEVELS:
        assert report[level.name]["top1"] >= 0.5
