"""The audience by direct counting over what it says."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from loadtests.audience.collector import place_of
from loadtests.audience.incidents import HARMLESS, KINDS, MINUTE_MS, Incident, schedule
from loadtests.audience.playback import CODES, EVENTS, STATES
from loadtests.audience.sessions import Audience
from loadtests.audience.world import DAY_MS, HOUR_MS, LADDERS, build_world
from serve.errors import InvalidInput
from serve.telemetry.cmcd import KINDS as KEYS
from serve.telemetry.reports import DIMENSIONS, context_of, read_plain

MIDNIGHT = 1_790_000_000_000 // DAY_MS * DAY_MS
EVENING = MIDNIGHT + 19 * HOUR_MS
WORLD = build_world(5)
SMALL = {"peak_concurrency": 600, "warm_up_s": 1200}
LARGE = {"seed": 5, "world": WORLD, "peak_concurrency": 2500, "duration_s": 1800, "warm_up_s": 1800}

PS, T, BC, E = range(4)
START, PLAY, STALL, PAUSE, SEEK, ENDED, FATAL, QUIT = range(len(STATES))


@pytest.fixture(scope="module")
def quiet():
    """Half an hour in which nothing happens, from 19:00."""
    return np.concatenate(list(Audience(start_ms=EVENING, **LARGE).rows()))


def incident(kind, slice_, *, severity=1.0, magnitude=1.0, after_min=4, minutes=20):
    return Incident(
        incident_id=f"the-{kind}", kind=kind, slice=slice_, start_ms=EVENING + after_min * MINUTE_MS,
        duration_ms=minutes * MINUTE_MS, severity=severity, magnitude=magnitude,
    )  # fmt: skip


def happening(one):
    """The half hour of `quiet` with an incident in it, and the truth."""
    audience = Audience(start_ms=EVENING, incidents=[one], **LARGE)
    rows = np.concatenate(list(audience.rows()))
    return rows, audience.truths()[0]


def inside(rows, slice_):
    chosen = np.ones(len(rows), dtype=bool)
    for dimension, value in slice_.items():
        chosen &= place_of(rows["context"], dimension) == WORLD.names[DIMENSIONS.index(dimension)].index(value)
    return chosen


def during(rows, one):
    return rows[(rows["at"] >= one.start_ms) & (rows["at"] < one.end_ms)]


def unique(rows):
    """Each report once, although some come twice."""
    return rows[np.unique(rows[["sid", "number"]], return_index=True)[1]]


def start_failures(rows):
    """Sessions that failed with no picture, as a share of those that began."""
    began = set(rows["sid"][(rows["event"] == PS) & (rows["state"] == START)].tolist())
    failed = set(rows["sid"][rows["state"] == FATAL].tolist()) - set(rows["sid"][rows["msd"] >= 0].tolist())
    return len(began & failed) / max(1, len(began))


def fatal_ends(rows):
    """Sessions that failed in playback, as a share of those heard of."""
    started = set(rows["sid"][rows["state"] == PLAY].tolist())
    return len(started & set(rows["sid"][rows["state"] == FATAL].tolist())) / max(1, len(started))


def stalls(rows):
    """Stalls that began, by time-interval report."""
    return ((rows["event"] == PS) & (rows["state"] == STALL)).sum() / max(1, (rows["event"] == T).sum())


def volume(rows):
    return float(len(rows))


def starts(rows):
    return float(((rows["event"] == PS) & (rows["state"] == START)).sum())


CASES = [
    (incident("cdn_down", {"cdn": "north", "region": "eu-west"}), [start_failures, stalls, fatal_ends]),
    (incident("cdn_slow", {"cdn": "north"}, magnitude=0.12), [stalls]),
    (incident("isp_congestion", {"asn": "64502"}, magnitude=0.1), [stalls]),
    (incident("app_crash", {"app": WORLD.names[4][1]}), [fatal_ends]),
    (incident("bad_encode", {"title": WORLD.names[5][0]}, magnitude=1.0), [fatal_ends]),
    (incident("bad_encode", {"title": WORLD.names[5][1]}, magnitude=0.0), [stalls]),
    (incident("drm_failure", {"device": "web", "protocol": "dash"}, severity=0.6), [start_failures]),
    (incident("slow_burn", {"device": "ios"}, magnitude=0.4), [start_failures, fatal_ends]),
]


@pytest.mark.parametrize(("one", "metrics"), CASES, ids=lambda value: getattr(value, "incident_id", ""))
def test_an_outage_shows_in_its_metrics_and_its_slice_and_nowhere_else(quiet, one, metrics):
    rows, truth = happening(one)
    now, usual = unique(during(rows, one)), unique(during(quiet, one))
    hit, was_hit = inside(now, one.slice), inside(usual, one.slice)
    for metric in metrics:
        assert metric(now[hit]) > 3 * metric(usual[was_hit]) + 0.01, metric.__name__
    assert np.array_equal(now[~hit], usual[~was_hit])  # viewers outside do exactly what they would have done
    assert truth.incident == one
    assert 0 < len(truth.hurt) <= truth.inside < truth.sessions
    assert set(truth.hurt) <= {f"{sid:016x}" for sid in rows["sid"][inside(rows, one.slice)].tolist()}
    assert len(set(truth.hurt)) == len(truth.hurt)
    assert truth.share == len(truth.hurt) / truth.sessions
    assert one.start_ms <= truth.first_hurt_ms < one.end_ms


def test_a_partial_failure_hurts_its_share_of_the_slice():
    shares = []
    for severity in (0.25, 0.75):
        one = incident("cdn_down", {"cdn": "north", "region": "eu-west"}, severity=severity)
        _, truth = happening(one)
        shares.append(len(truth.hurt) / truth.inside)
    assert shares[0] == pytest.approx(0.25, abs=0.12)
    assert shares[1] == pytest.approx(0.75, abs=0.12)


@pytest.mark.parametrize("slice_", [{}, {"region": "uk"}], ids=["everywhere", "a region"])
def test_a_telemetry_gap_silences_players_and_hurts_nobody(quiet, slice_):
    one = incident("telemetry_gap", slice_, severity=0.9, minutes=5)
    rows, truth = happening(one)
    now, usual = during(rows, one), during(quiet, one)
    hit, was_hit = inside(now, slice_), inside(usual, slice_)
    assert hit.sum() == pytest.approx(0.1 * was_hit.sum(), rel=0.15)
    late = np.isin(usual[["sid", "number"]], now[["sid", "number"]])
    assert late[~was_hit].all()
    assert truth.hurt == ()
    assert truth.first_hurt_ms is None
    assert truth.sessions > 0
    after = one.end_ms + 5 * MINUTE_MS  # players go on as if nothing had been
    assert np.array_equal(np.sort(rows[rows["at"] > after]), np.sort(quiet[quiet["at"] > after]))


def test_a_flash_crowd_multiplies_the_starts_of_its_title_and_hurts_nobody(quiet):
    one = incident("flash_crowd", {"title": WORLD.names[5][0]}, magnitude=4.0)
    rows, truth = happening(one)
    first = Incident(**{**_fields(one), "start_ms": one.start_ms + 3 * MINUTE_MS, "duration_ms": 5 * MINUTE_MS})
    now, usual = unique(during(rows, first)), unique(during(quiet, first))
    hit, was_hit = inside(now, one.slice), inside(usual, one.slice)
    assert 3.0 < starts(now[hit]) / starts(usual[was_hit]) < 5.0
    assert np.array_equal(now[~hit], usual[~was_hit])
    assert truth.hurt == ()
    for metric in (start_failures, fatal_ends, stalls):
        assert metric(now[hit]) < 0.03, metric.__name__


def _fields(one):
    return {name: getattr(one, name) for name in Incident.__dataclass_fields__}


def test_rates_of_ordinary_time_are_what_was_asked(quiet):
    once = unique(quiet)
    began = set(once["sid"][(once["event"] == PS) & (once["state"] == START)].tolist())
    settled = once[np.isin(once["sid"], list(began))]
    assert 0.004 < start_failures(settled) < 0.011
    assert 0.0003 < fatal_ends(settled) < 0.005  # about .3 % over whole sessions, most of which are longer
    assert 0.004 < stalls(once) < 0.02
    errors = set(once["sid"][once["event"] == E].tolist()) - set(once["sid"][once["state"] == FATAL].tolist())
    assert 0.0005 < len(errors) / len(set(once["sid"].tolist())) < 0.006
    startup_ms = once["msd"][once["msd"] >= 0]
    assert 400 < np.median(startup_ms) < 1500
    assert np.mean(startup_ms > 5000) < 0.01


def test_as_many_watch_as_was_asked_at_the_evenings_peak_and_few_at_night():
    watching = {}
    for hour in (3, 19.5):
        audience = Audience(seed=5, start_ms=MIDNIGHT + int(hour * HOUR_MS), duration_s=300)
        rows = np.concatenate(list(audience.rows()))
        watching[hour] = (unique(rows)["event"] == T).sum() / 10  # a report each 30 s
    assert watching[19.5] == pytest.approx(1500, rel=0.15)
    assert 100 < watching[3] < 500


def test_contexts_come_as_often_as_the_world_says(quiet):
    began = unique(quiet[(quiet["event"] == PS) & (quiet["state"] == START)])
    for slice_ in (
        {"device": "tv"},
        {"asn": "64502"},
        {"cdn": "north"},
        {"title": WORLD.names[5][0]},
        {"protocol": "hls"},
    ):
        expected = WORLD.share(slice_)
        assert inside(began, slice_).mean() == pytest.approx(expected, rel=0.15), slice_


def test_the_way_to_the_collector_loses_repeats_delays_and_reorders(quiet):
    reports = quiet[["sid", "number"]]
    _, times = np.unique(reports, return_counts=True)
    assert np.mean(times > 1) == pytest.approx(0.007, abs=0.003)
    ends = quiet[quiet["number"].argsort(kind="stable")]
    spoken = Counter(quiet["sid"].tolist())
    heard, said = 0, 0
    numbers = {}
    for sid, number in zip(ends["sid"].tolist(), ends["number"].tolist(), strict=True):
        numbers.setdefault(sid, set()).add(number)
    for sid, known in numbers.items():
        if spoken[sid] > 20:
            heard += len(known)
            said += max(known) - min(known) + 1
    assert 1 - heard / said == pytest.approx(0.012, abs=0.006)
    by_session = quiet[quiet["sid"].argsort(kind="stable")]  # in order of arrival within each
    overtaken = (np.diff(by_session["number"]) < 0) & (np.diff(by_session["sid"].astype(np.int64)) == 0)
    assert 0.002 < overtaken.mean() < 0.05
    median_offset = {}
    for sid in list(spoken)[:400]:
        own = quiet[quiet["sid"] == sid]
        median_offset[sid] = np.median(own["at"] - own["ts"])
    offsets = np.array(list(median_offset.values()))
    assert 0.005 < np.mean(np.abs(offsets) > 10_000) < 0.08  # clocks that are wrong
    delays = np.concatenate(
        [
            (own["at"] - own["ts"]) - median_offset[sid]
            for sid in list(median_offset)[:400]
            for own in [quiet[quiet["sid"] == sid]]
        ]
    )
    assert 0.001 < np.mean(delays > 20_000) < 0.01
    assert delays.max() < 300_000


def test_some_sessions_vanish_without_a_word():
    audience = Audience(seed=6, start_ms=EVENING, duration_s=5400, **SMALL)
    rows = np.concatenate(list(audience.rows()))
    last = {}
    for sid, number, at, state in zip(*(rows[name].tolist() for name in ("sid", "number", "at", "state")), strict=True):
        if sid not in last or number > last[sid][0]:
            last[sid] = (number, at, state)
    silent = [state in {ENDED, FATAL, QUIT} for _, at, state in last.values() if at < audience.end_ms - 10 * MINUTE_MS]
    assert 0.01 < 1 - np.mean(silent) < 0.1


def test_reports_are_valid_cmcd_in_order_of_arrival_and_the_same_as_rows():
    audience = Audience(seed=7, start_ms=EVENING, duration_s=240, interval_s=10, **SMALL)
    reports = list(audience.reports())
    rows = np.concatenate(list(audience.rows()))
    assert [one.received_ms for one in reports] == rows["at"].tolist()
    assert all(one.received_ms <= other.received_ms for one, other in pairwise(reports))
    assert audience.start_ms <= reports[0].received_ms
    assert reports[-1].received_ms < audience.end_ms
    seen = Counter()
    for one in reports:
        values, malformed = read_plain(one.values)
        assert malformed == ()
        assert values == one.values
        assert set(values) <= set(KEYS)
        assert one.session == values["sid"]
        assert set(one.context) == set(DIMENSIONS)
        assert context_of(values, one.context) == one.context
        assert one.event in EVENTS
        assert (values["e"] == "e") == ("ec" in values)
        assert values.get("ec", [CODES[0]])[0] in CODES
        assert values["br"]["v"] in LADDERS
        assert values["bl"]["v"] % 100 == 0
        assert one.values["sf"] == {"dash": "d", "hls": "h"}[one.context["protocol"]]
        seen.update(key for key in values)
    assert {"msd", "bsa", "bsd", "bsda", "mtp", "tb"} <= set(seen)
    gaps = np.diff([one.values["ts"] for one in reports if one.session == reports[0].session and one.event == "t"])
    assert np.median(gaps) == pytest.approx(10_000, abs=5)


def test_the_first_picture_carries_the_start_delay_once():
    starts_told = Counter(
        one.session for one in Audience(seed=8, start_ms=EVENING, duration_s=600, **SMALL).reports()
        if "msd" in one.values and one.values["sn"] < 20
    )  # fmt: skip
    assert starts_told
    assert max(starts_told.values()) <= 2  # twice where the report itself came twice
    assert np.mean(np.array(list(starts_told.values())) == 1) > 0.97


def test_buffer_starvation_grows_and_a_state_follows_from_the_one_before(quiet):
    once = unique(quiet)  # by session and number
    same = np.diff(once["sid"].astype(np.int64)) == 0
    told = (once["bsa"][:-1] >= 0) & (once["bsa"][1:] >= 0) & same
    assert told.any()
    assert (np.diff(once["bsa"])[told] >= 0).all()
    assert (np.diff(once["bsda"])[told] >= 0).all()
    over = np.isin(once["state"][:-1], [ENDED, FATAL, QUIT]) & (once["event"][:-1] == PS) & same
    assert not over.any()  # nothing follows the end
    assert (once["bl"] >= 0).all()
    assert (once["bl"][once["state"] == STALL] == 0).all()


def test_the_same_seed_is_the_same_audience_to_the_last_bit_and_another_is_not():
    def rows(seed):
        incidents = schedule(seed, 1, world=build_world(seed), start_ms=MIDNIGHT)
        return np.concatenate(
            list(Audience(seed=seed, start_ms=EVENING, duration_s=600, incidents=incidents, **SMALL).rows())
        )

    first, again, other = rows(1), rows(1), rows(2)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_steering_that_changes_nothing_changes_nothing_and_time_may_be_cut_anyhow():
    asked = []

    def stay(context, now_ms):
        asked.append(now_ms)
        return context["cdn"]

    plain_rows, steered_rows = (
        np.concatenate(list(Audience(seed=9, start_ms=EVENING, duration_s=900, route=route, **SMALL).rows()))
        for route in (None, stay)
    )
    assert np.array_equal(plain_rows, steered_rows)
    assert len(asked) > 1000


def test_steering_away_from_a_broken_cdn_spares_viewers():
    one = incident("cdn_down", {"cdn": "north", "region": "eu-west"}, after_min=5, minutes=15)

    def avoid(context, now_ms):
        if context["cdn"] == "north" and context["region"] == "eu-west" and now_ms >= one.start_ms + 60_000:
            return "west"
        return context["cdn"]

    hurt = []
    for route in (lambda context, _: context["cdn"], avoid):
        audience = Audience(
            seed=9, start_ms=EVENING, duration_s=1500, incidents=[one], world=WORLD, route=route, route_ttl_s=60,
            **SMALL,
        )  # fmt: skip
        with pytest.raises(InvalidInput, match="steered"):
            audience.truths()
        for report in audience.reports():
            assert report.values["cdn"] == report.context["cdn"]
        hurt.append(len(audience.truths()[0].hurt))
    assert hurt[1] < 0.8 * hurt[0]


def test_a_route_is_asked_only_once_all_that_came_before_was_read():
    read_until = [0]

    def route(context, now_ms):
        assert now_ms >= read_until[0] - 1
        return context["cdn"]

    for report in Audience(seed=10, start_ms=EVENING, duration_s=120, route=route, **SMALL).reports():
        read_until[0] = report.received_ms // 10_000 * 10_000


@pytest.mark.parametrize(
    "wrong", [{"duration_s": 0}, {"peak_concurrency": -1}, {"interval_s": float("nan")}, {"route_ttl_s": 0}]
)
def test_numbers_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(InvalidInput) as caught:
        Audience(**({"seed": 1, "start_ms": EVENING, "duration_s": 60} | wrong))
    assert caught.value.field == next(iter(wrong))


def test_incidents_that_cannot_be_are_refused():
    with pytest.raises(InvalidInput):
        incident("cdn_down", {"cdn": "north"}, severity=0)
    with pytest.raises(InvalidInput):
        incident("earthquake", {})
    with pytest.raises(InvalidInput):
        incident("cdn_down", {}, minutes=0)
    with pytest.raises(InvalidInput, match="nowhere"):
        Audience(seed=1, start_ms=EVENING, duration_s=60, incidents=[incident("cdn_down", {"cdn": "nowhere"})])
    with pytest.raises(InvalidInput, match="elsewhere"):
        list(Audience(seed=1, start_ms=EVENING, duration_s=60, route=lambda *_: "elsewhere").rows())


def test_a_schedule_mixes_all_kinds_with_room_between_and_is_the_same_for_a_seed():
    world = build_world(3)
    planned = schedule(3, 10, world=world, start_ms=MIDNIGHT)
    assert planned == schedule(3, 10, world=world, start_ms=MIDNIGHT)
    assert planned != schedule(4, 10, world=world, start_ms=MIDNIGHT)
    assert {one.kind for one in planned} == set(KINDS)
    assert 60 <= len(planned) <= 100
    assert all(one.end_ms + 20 * MINUTE_MS < other.start_ms for one, other in pairwise(planned))
    assert planned[0].start_ms >= MIDNIGHT + 2 * HOUR_MS
    assert planned[-1].end_ms <= MIDNIGHT + 10 * DAY_MS
    assert len({one.incident_id for one in planned}) == len(planned)
    assert all(one.is_outage == (one.kind not in HARMLESS) for one in planned)
    for one in planned:
        assert world.share(one.slice) > 0
    assert schedule(3, 0.1, world=world, start_ms=MIDNIGHT, quiet_ms=3 * HOUR_MS) == ()


def test_slices_of_the_same_viewers_are_known_as_such():
    app = WORLD.names[4][0]
    assert WORLD.same_viewers({"app": app}, {"app": app, "device": "tv"})
    assert WORLD.same_viewers({"device": "ios"}, {"device": "ios", "protocol": "hls"})
    assert WORLD.same_viewers({"asn": "64506"}, {"region": "us-east", "asn": "64506"})
    assert not WORLD.same_viewers({"asn": "64501"}, {"asn": "64501", "region": "eu-west"})
    assert not WORLD.same_viewers({"device": "web"}, {"device": "web", "protocol": "dash"})
    assert not WORLD.same_viewers({"device": "web"}, {"device": "tv"})
    assert not WORLD.same_viewers({"cdn": "nowhere"}, {"cdn": "nowhere"})
    assert WORLD.share({}) == pytest.approx(1)
    assert WORLD.overlap({"device": "web"}, {"device": "tv"}) == 0
    assert WORLD.overlap({"device": "web"}, {"cdn": "north"}) == pytest.approx(
        WORLD.share({"device": "web", "cdn": "north"})
    )
    for at, dimension in enumerate(DIMENSIONS):
        assert sum(WORLD.share({dimension: value}) for value in WORLD.names[at]) == pytest.approx(1), dimension
