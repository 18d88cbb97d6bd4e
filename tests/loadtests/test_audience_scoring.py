import pytest

from loadtests.audience.incidents import Incident
from loadtests.audience.scoring import belongs, named, score
from loadtests.audience.sessions import Truth
from loadtests.audience.world import build_world
from serve.errors import InvalidInput
from serve.watchtower.outages import Outage

WORLD = build_world(5)
APP = WORLD.names[4][0]
NOON = 1_790_000_000_000
MINUTE = 60_000


def truth(kind="cdn_down", slice_=None, *, at=0, minutes=20, hurt=50, sessions=1000, first=30_000):
    return Truth(
        incident=Incident(
            incident_id=f"{kind}-{at}", kind=kind, slice={"cdn": "north"} if slice_ is None else slice_,
            start_ms=NOON + at * MINUTE, duration_ms=minutes * MINUTE,
        ),
        sessions=sessions, inside=sessions // 3, hurt=tuple(f"{number:016x}" for number in range(hurt)),
        first_hurt_ms=NOON + at * MINUTE + first if hurt else None,
    )  # fmt: skip


def outage(slice_=None, *, at_s=60.0, hurt=50, evidence=()):
    detected = NOON + int(at_s * 1000)
    return Outage(
        outage_id=f"o{at_s}", state="closed", slice={"cdn": "north"} if slice_ is None else slice_, effects=(),
        started_ts=detected, detected_ts=detected, updated_ts=detected, closed_ts=detected + MINUTE,
        sessions_hurt=hurt, evidence=tuple({"slice": one} for one in evidence),
    )  # fmt: skip


def scored(truths, outages, **settings):
    return score(truths, outages, world=WORLD, **({"days": 2.0} | settings))


def test_all_found_and_nothing_else_is_a_perfect_score():
    got = scored(
        [truth(), truth("drm_failure", {"device": "web"}, at=60)], [outage(), outage({"device": "web"}, at_s=3620)]
    )
    assert got.summary() == {
        "median_delay_s": 40.0, "precision": 1.0, "recall": 1.0, "top1": 1.0, "top3": 1.0,
        "false_alarms_per_day": 0.0, "harmless_called": {},
    }  # fmt: skip
    assert [one.delay_s for one in got.findings] == [60.0, 20.0]
    assert [one.delay_after_hurt_s for one in got.findings] == [30.0, 0.0]


def test_a_missed_outage_lowers_recall_unless_it_is_small():
    missed = truth("drm_failure", {"device": "web"}, at=60)
    assert scored([truth(), missed], [outage()]).recall == 0.5
    small = truth("drm_failure", {"device": "web"}, at=60, hurt=9)
    got = scored([truth(), small], [outage()])
    assert got.recall == 1.0
    assert [one.delay_s for one in got.findings] == [60.0, None]
    assert scored([truth(), small], [outage()], least_share=0.001).recall == 0.5


def test_a_small_outage_that_is_found_is_no_false_alarm_and_counts_for_nothing_else():
    small = truth("drm_failure", {"device": "web"}, hurt=3)
    got = scored([small], [outage({"device": "tv"}, at_s=90), outage({"device": "web"})])
    assert (got.precision, got.false_alarms_per_day) == (0.5, 0.5)
    assert (got.recall, got.top1, got.median_delay_s) == (None, None, None)


@pytest.mark.parametrize(
    "stray",
    [
        outage(at_s=-1),  # before the incident
        outage(at_s=20 * 60 + 601),  # long after it
        outage({"cdn": "west"}),  # somewhere else
        outage({"cdn": "nowhere"}),  # of a value that does not exist
    ],
    ids=lambda one: str(dict(one.slice)) + one.outage_id,
)
def test_an_outage_that_belongs_to_no_incident_is_a_false_alarm(stray):
    got = scored([truth()], [outage(), stray])
    assert (got.precision, got.recall, got.false_alarms_per_day) == (0.5, 1.0, 0.5)
    assert not belongs(stray, truth(), WORLD)


def test_an_outage_of_a_slice_that_shares_viewers_belongs():
    for slice_ in ({}, {"cdn": "north", "region": "uk"}, {"region": "uk"}):
        assert belongs(outage(slice_), truth(), WORLD), slice_
    assert belongs(outage(at_s=20 * 60 + 599), truth(), WORLD)


@pytest.mark.parametrize("kind", ["telemetry_gap", "flash_crowd"])
def test_calling_what_hurts_nobody_an_outage_is_counted_by_kind(kind):
    slice_ = {} if kind == "telemetry_gap" else {"title": WORLD.names[5][0]}
    harmless = truth(kind, slice_, at=120, hurt=0)
    got = scored([truth(), harmless], [outage(), outage(slice_, at_s=7260)])
    assert got.harmless_called == {kind: 1}
    assert (got.precision, got.recall, got.false_alarms_per_day) == (0.5, 1.0, 0.0)
    assert len(got.findings) == 1
    assert scored([harmless], []).harmless_called == {kind: 0}
    both = scored([truth(at=120), harmless], [outage(at_s=7260)])  # about the outage that happens meanwhile
    assert both.harmless_called == {kind: 0}


def test_the_median_is_over_first_alarms_of_incidents_found():
    truths = [truth(at=60 * number) for number in range(4)]
    outages = [outage(at_s=3600 * number + delay) for number, delay in enumerate((10, 200, 30))]
    got = scored(truths, [*outages, outage(at_s=3600 + 20)])
    assert got.median_delay_s == 20.0
    assert got.recall == 0.75
    assert got.precision == 1.0  # two outages about one incident are both right


def test_causes_are_right_where_the_viewers_are_the_same():
    crash = truth("app_crash", {"app": APP})
    for slice_, right in (({"app": APP}, 1.0), ({"app": APP, "device": "tv"}, 1.0), ({"device": "tv"}, 0.0), ({}, 0.0)):
        assert scored([crash], [outage(slice_)]).top1 == right, slice_


def test_causes_among_the_first_three_count_for_top3_only():
    second = outage({"region": "uk"}, evidence=[{"region": "uk"}, {"device": "tv"}, {"cdn": "north"}])
    assert named(second) == [{"region": "uk"}, {"device": "tv"}, {"cdn": "north"}]
    got = scored([truth()], [second])
    assert (got.top1, got.top3) == (0.0, 1.0)
    fourth = outage({"region": "uk"}, evidence=[{"device": "tv"}, {"device": "web"}, {"cdn": "north"}])
    assert scored([truth()], [fourth]).top3 == 0.0


def test_of_several_outages_the_one_that_hurt_most_tells_the_cause():
    got = scored([truth()], [outage({"region": "uk"}, at_s=30, hurt=3), outage(at_s=60, hurt=40)])
    assert (got.top1, got.median_delay_s) == (1.0, 30.0)
    assert got.findings[0].named == {"cdn": "north"}


def test_nothing_called_and_nothing_true_have_no_figures():
    got = scored([], [])
    assert got.summary()["precision"] is None
    assert got.recall is None
    assert scored([truth()], []).recall == 0.0
    with pytest.raises(InvalidInput):
        scored([], [], days=0)
