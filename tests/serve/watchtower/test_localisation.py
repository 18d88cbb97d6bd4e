"""Localisation on tables small enough to know the answer."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.watchtower.localisation import evidence_of, localise
from serve.watchtower.localisation_table import leaf_table

DIMENSIONS = {
    "cdn": ["alpha", "beta", "gamma"],
    "region": ["north", "south", "east", "west"],
    "device": ["tv", "phone", "web"],
    "app": ["1", "2"],
}
WINDOWS = 6


def make(rng, *, bad=lambda leaf: 0.0, traffic=lambda leaf: 1.0, usual=0.02, sessions=120, windows=WINDOWS, noise=0.0):
    """Frame whose last window has `bad` more share of bad sessions, and `traffic` times the sessions, per leaf."""
    leaves = [dict(zip(DIMENSIONS, names, strict=True)) for names in _product(*DIMENSIONS.values())]
    rows = []
    for window in range(windows):
        last = window == windows - 1
        for leaf in leaves:
            total = rng.poisson(sessions * (traffic(leaf) if last else 1.0))
            ratio = usual * np.exp(rng.normal(0, noise))
            ratio += (1 - ratio) * bad(leaf) if last else 0.0
            if total:
                rows.append({"timestamp": window * 60_000, **leaf, "total": total, "bad": rng.binomial(total, ratio)})
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("total", "bad").cast(pl.Float64))


def _product(*values):
    grids = np.meshgrid(*[np.array(each, dtype=object) for each in values], indexing="ij")
    return [tuple(names) for names in np.stack([grid.ravel() for grid in grids], axis=1).tolist()]


def table_of(frame, windows=WINDOWS, dimensions=tuple(DIMENSIONS)):
    return leaf_table(frame, dimensions, at_ms=(windows - 1) * 60_000, history_ms=3_600_000)


def causes_of(found):
    return [cause.slice_ for cause in found.causes if cause.is_cause]


def within(**names):
    return lambda leaf: all(leaf[name] == value for name, value in names.items())


@pytest.fixture
def rng():
    return np.random.default_rng(90210)


@pytest.mark.parametrize(
    "slice_",
    [{"cdn": "beta"}, {"cdn": "beta", "device": "tv"}, {"cdn": "gamma", "region": "east", "device": "phone"}],
)
@pytest.mark.parametrize("share", [0.9, 0.3])
def test_names_the_slice_neither_wider_nor_narrower(rng, slice_, share):
    inside = within(**slice_)
    found = localise(table_of(make(rng, bad=lambda leaf: share * inside(leaf))))
    assert causes_of(found) == [slice_]
    assert not found.external
    assert found.causes[0].score > 0.9
    assert all(cause.score < 0.5 for cause in found.causes[1:])


def test_two_causes_at_once(rng):
    one, other = {"cdn": "beta", "region": "north"}, {"device": "web"}
    strong, weak = within(**one), within(**other)
    found = localise(table_of(make(rng, bad=lambda leaf: 0.7 * strong(leaf) + 0.1 * weak(leaf))))
    assert sorted(map(str, causes_of(found))) == sorted(map(str, [one, other]))


def test_all_values_of_a_parent_are_the_parent(rng):
    inside = within(region="south")
    found = localise(table_of(make(rng, bad=lambda leaf: 0.4 * inside(leaf))))
    assert causes_of(found) == [{"region": "south"}]


def test_everything_alike_is_external(rng):
    found = localise(table_of(make(rng, bad=lambda leaf: 0.2)))
    assert found.external
    assert found.causes == ()
    assert found.overall_lift > 5


def test_a_slice_beside_a_drift_is_no_external(rng):
    inside = within(cdn="alpha", device="tv")
    found = localise(table_of(make(rng, bad=lambda leaf: 0.5 * inside(leaf) + 0.002)))
    assert causes_of(found) == [{"cdn": "alpha", "device": "tv"}]
    assert not found.external


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_nothing_wrong_names_nothing(rng, noise):
    found = localise(table_of(make(rng, noise=noise)))
    assert causes_of(found) == []
    assert not found.external


def test_a_traffic_shift_to_a_worse_slice_is_no_cause(rng):
    def traffic(leaf):
        return 8.0 if leaf["cdn"] == "beta" else 0.5

    frame = make(rng, traffic=traffic)
    worse = pl.col("cdn") == "beta"
    raised = (pl.col("bad") + (pl.col("total") * 0.2).round()).clip(upper_bound=pl.col("total"))
    frame = frame.with_columns(bad=pl.when(worse).then(raised).otherwise(pl.col("bad")))
    now = frame.filter(pl.col("timestamp") == (WINDOWS - 1) * 60_000)
    before = frame.filter(pl.col("timestamp") == 0)
    assert now["bad"].sum() / now["total"].sum() > 1.8 * before["bad"].sum() / before["total"].sum()
    found = localise(table_of(frame))
    assert causes_of(found) == []
    assert not found.external


def test_a_value_never_seen_before(rng):
    frame = make(rng)
    rows = frame.filter((pl.col("timestamp") == (WINDOWS - 1) * 60_000) & (pl.col("device") == "tv")).with_columns(
        app=pl.lit("3"), bad=(pl.col("total") * 0.5).round()
    )
    found = localise(table_of(pl.concat([frame, rows])))
    assert causes_of(found) == [{"app": "3"}]


def test_of_values_that_mean_the_same_the_shorter_name(rng):
    """App 3 runs on phones only: the device adds nothing to its name."""
    frame = make(rng, bad=lambda leaf: 0.0)
    app = pl.when((pl.col("device") == "phone") & (pl.col("app") == "2")).then(pl.lit("3")).otherwise(pl.col("app"))
    hurt = (pl.col("app") == "3") & (pl.col("timestamp") == (WINDOWS - 1) * 60_000)
    frame = frame.with_columns(app=app)
    frame = frame.with_columns(bad=pl.when(hurt).then((pl.col("total") * 0.3).round()).otherwise(pl.col("bad")))
    assert causes_of(localise(table_of(frame))) == [{"app": "3"}]


def test_the_share_of_good_sessions_that_fail_is_uniform_whatever_the_usual_ratio(rng):
    """A fifth of the sessions fails anew; in half of the slice's leaves many failed before."""
    frame = make(rng, bad=lambda leaf: 0.2 * (leaf["cdn"] == "beta"), usual=0.005)
    extra = (pl.col("region").is_in(["north", "west"])).cast(pl.Float64) * (pl.col("total") - pl.col("bad")) * 0.15
    frame = frame.with_columns(bad=pl.col("bad") + extra.round())
    assert causes_of(localise(table_of(frame))) == [{"cdn": "beta"}]


def test_windows_that_are_hit_already_are_left_out_of_the_baseline(rng):
    inside = within(cdn="beta")
    frame = make(rng, bad=lambda leaf: 0.5 * inside(leaf), windows=WINDOWS + 6)
    last = frame.filter(pl.col("timestamp") == (WINDOWS + 5) * 60_000)
    early = [last.with_columns(timestamp=pl.lit((WINDOWS + back) * 60_000, dtype=pl.Int64)) for back in (3, 4)]
    frame = frame.filter(~pl.col("timestamp").is_in([(WINDOWS + back) * 60_000 for back in (3, 4)]))
    table = table_of(pl.concat([frame, *early]), windows=WINDOWS + 6)
    assert table.left_out == 2
    assert table.windows == WINDOWS + 3
    assert causes_of(localise(table)) == [{"cdn": "beta"}]


def test_evidence_adds_up(rng):
    inside = within(cdn="beta", device="tv")
    table = table_of(make(rng, bad=lambda leaf: 0.5 * inside(leaf)))
    found = localise(table)
    proof = found.causes[0].evidence
    rows = (table.codes[:, 0] == table.values[0].index("beta")) & (table.codes[:, 2] == table.values[2].index("tv"))
    assert proof.total == table.total[rows].sum()
    assert proof.bad == table.bad[rows].sum()
    assert proof.excess == pytest.approx(proof.bad - proof.expected)
    assert proof.expected == pytest.approx(0.02 * proof.total, rel=0.5)
    assert proof.ratio_before == pytest.approx(0.02, abs=0.01)
    assert proof.ratio_now == pytest.approx(0.51, abs=0.06)
    assert proof.share > 0.95
    assert proof.p_value < 1e-9
    assert evidence_of(found.causes[0])["log_likelihood_ratio"] > 100


@pytest.mark.parametrize("left", [0.0, 0.4])
def test_missing_sessions_are_found_where_they_are_gone(rng, left):
    inside = within(region="west", device="phone")
    table = table_of(make(rng, traffic=lambda leaf: left if inside(leaf) else 1.0))
    found = localise(table, metric="missing")
    assert causes_of(found) == [{"region": "west", "device": "phone"}]
    assert found.causes[0].evidence.excess < 0
    assert causes_of(localise(table)) == []


def test_missing_everywhere_is_external(rng):
    found = localise(table_of(make(rng, traffic=lambda leaf: 0.4)), metric="missing")
    assert found.external
    assert found.causes == ()


def test_no_sessions_at_all(rng):
    table = table_of(make(rng))
    empty = dataclasses.replace(table, total=np.zeros_like(table.total), bad=np.zeros_like(table.bad))
    assert localise(empty).causes == ()
    assert causes_of(localise(empty, metric="missing")) == []
    assert localise(empty, metric="missing").external


def test_one_leaf_and_one_dimension():
    frame = pl.DataFrame(
        {"timestamp": [0, 60_000], "cdn": ["alpha", "alpha"], "total": [1000.0, 1000.0], "bad": [10.0, 500.0]}
    )
    found = localise(leaf_table(frame, ["cdn"], at_ms=60_000, history_ms=60_000))
    assert found.external


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top=st.integers(1, 8))
def test_any_counts_give_a_sound_answer(seed, top):
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(4, 60))
    total = rng.integers(0, 50, rows).astype(np.float64)
    frame = pl.DataFrame(
        {
            "timestamp": np.concatenate([[0, 60_000], rng.integers(0, 2, rows - 2) * 60_000]),
            **{name: rng.choice(["", "NaN", "é", "x"], rows) for name in "pqr"},
            "total": total,
            "bad": np.floor(total * rng.random(rows)),
        }
    )
    for metric in ("bad", "missing"):
        found = localise(leaf_table(frame, list("pqr"), at_ms=60_000, history_ms=60_000), metric=metric, top=top)
        assert len(found.causes) <= top
        assert not (found.external and found.causes)
        for cause in found.causes:
            assert 0 <= cause.score <= 1
            assert cause.is_cause == (cause.score >= 0.5)
            assert set(cause.slice_) <= set("pqr")
            assert all(np.isfinite(value) for value in evidence_of(cause).values() if not isinstance(value, str))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_and_columns_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    inside = within(cdn="beta", device="tv")
    frame = make(np.random.default_rng(3), bad=lambda leaf: 0.3 * inside(leaf), sessions=40)
    mixed = frame[rng.permutation(len(frame))]
    order = tuple(rng.permutation(list(DIMENSIONS)).tolist())
    one, other = (localise(table) for table in (table_of(frame), table_of(mixed, dimensions=order)))
    assert causes_of(one) == causes_of(other) == [{"cdn": "beta", "device": "tv"}]
