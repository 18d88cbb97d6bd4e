import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from features.events import Event
from features.titles import Title
from serve.errors import InvalidInput
from training.datasets.dataset import WEEK_MS
from training.datasets.importing import import_dataset
from training.datasets.synthetic import EPOCH_MS, Audience, generate, prepare_synthetic


@pytest.fixture(scope="module")
def audience() -> Audience:
    return generate(profiles=4_000, titles=2_000, events=200_000, seed=7)


def plays(audience: Audience) -> pl.DataFrame:
    return audience.events.filter(pl.col("kind") == "play")


def test_the_same_seed_gives_the_same_tables_and_another_seed_does_not(audience: Audience) -> None:
    again = generate(profiles=4_000, titles=2_000, events=200_000, seed=7)
    assert again.events.equals(audience.events)
    assert again.titles.equals(audience.titles)
    assert again.profiles.equals(audience.profiles)
    other = generate(profiles=4_000, titles=2_000, events=200_000, seed=8)
    assert not other.events["title_id"].equals(audience.events["title_id"])


@given(
    profiles=st.integers(1, 300),
    titles=st.integers(10, 200),
    events=st.integers(1, 400),
    seed=st.integers(0, 2**32),
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_every_size_gives_rows_that_keep_the_contracts(profiles: int, titles: int, events: int, seed: int) -> None:
    made = generate(profiles=profiles, titles=titles, events=events, seed=seed)
    assert (made.events.height, made.titles.height, made.profiles.height) == (events, titles, profiles)
    for row in made.events.iter_rows(named=True):
        event = Event.model_validate(row)
        assert event.position_s <= event.duration_s
    for row in made.titles.iter_rows(named=True):
        Title.model_validate(row)
    assert made.events["event_id"].is_unique().all()
    assert made.events["ts"].is_sorted()
    assert EPOCH_MS - WEEK_MS < made.events["ts"][-1] <= EPOCH_MS
    seen = seen_with_rights(made)
    assert seen.filter(pl.col("kids_profile") & ~pl.col("kids")).is_empty()
    assert seen.filter(~pl.col("shown")).is_empty()


def seen_with_rights(audience: Audience) -> pl.DataFrame:
    """Events with whether the profile is for kids, the title is, and the profile's region shows it."""
    everywhere = pl.col("regions").list.len() == 0
    return (
        audience.events.drop("region")
        .join(audience.titles.select("title_id", "kids", "regions"), on="title_id", validate="m:1")
        .join(audience.profiles.rename({"kids": "kids_profile"}), on="profile_id", validate="m:1")
        .with_columns(shown=everywhere | pl.col("regions").list.contains(pl.col("region")))
    )


def test_kids_profiles_see_kids_titles_only(audience: Audience) -> None:
    seen = seen_with_rights(audience)
    assert seen.filter("kids_profile").height > 10_000
    assert seen.filter("kids_profile")["kids"].all()
    assert seen.filter(~pl.col("kids_profile"))["kids"].any()


def test_nobody_sees_what_their_region_does_not_show(audience: Audience) -> None:
    seen = seen_with_rights(audience)
    assert seen.filter(pl.col("regions").list.len() > 0).height > 10_000
    assert seen["shown"].all()
    assert set(audience.profiles["region"]) == {"us", "eu", "in", "br"}


def test_popularity_follows_zipf(audience: Audience) -> None:
    counts = np.sort(plays(audience)["title_id"].value_counts()["count"].to_numpy())[::-1][:400]
    slope = np.polyfit(np.log(np.arange(1, 401)), np.log(counts), 1)[0]
    # not quite -1: viewers rarely watch a title twice, and sequels are reached through their series
    assert -1.1 < slope < -0.6


def test_the_next_title_can_be_learned_from_the_last(audience: Audience) -> None:
    number = pl.col("title_id").str.slice(1).cast(pl.Int64)
    pairs = (
        plays(audience)
        .sort("profile_id", "ts")
        .select(one=number, two=number.shift(-1).over("profile_id"))
        .drop_nulls()
    )
    follows = pairs.filter(pl.col("two") == pl.col("one") + 1).height / pairs.height
    shuffled = pairs["two"].sample(fraction=1.0, shuffle=True, seed=0)
    by_chance = int((shuffled == pairs["one"] + 1).sum()) / pairs.height
    assert follows > 0.15
    assert by_chance < 0.01


def test_profiles_have_tastes_and_finish_what_they_like(audience: Audience) -> None:
    watched = plays(audience).join(
        audience.titles.select("title_id", genre=pl.col("genres").list.first()), on="title_id"
    )
    counts = watched.group_by("profile_id", "genre").len()
    busy = (
        counts.group_by("profile_id").agg(top=pl.col("len").max(), all=pl.col("len").sum()).filter(pl.col("all") >= 20)
    )
    overall = watched["genre"].value_counts(normalize=True)["proportion"].max()
    assert isinstance(overall, float)
    assert busy.select((pl.col("top") / pl.col("all")).mean()).item() > 2 * overall
    kinds = dict(audience.events["kind"].value_counts().iter_rows())
    assert set(kinds) == {
        "impression", "play", "progress", "finish", "thumbs_up", "thumbs_down", "add_to_list", "remove_from_list",
    }  # fmt: skip
    assert 0.5 < kinds["finish"] / kinds["play"] < 0.9
    assert kinds["impression"] > kinds["play"]


def test_a_profile_watches_one_thing_at_a_time(audience: Audience) -> None:
    spans = audience.events.filter(pl.col("kind").is_in(["play", "finish"])).sort(
        "profile_id", "ts", maintain_order=True
    )
    finished = spans.filter(pl.col("kind") == "finish", pl.col("profile_id") == pl.col("profile_id").shift(1))
    before = spans.with_columns(
        before_kind=pl.col("kind").shift(1).over("profile_id"),
        before_title=pl.col("title_id").shift(1).over("profile_id"),
    ).filter(pl.col("kind") == "finish", pl.col("before_kind").is_not_null())
    assert not finished.is_empty()
    assert (before["before_kind"] == "play").all()
    assert (before["before_title"] == before["title_id"]).all()


def test_evenings_are_busier_than_mornings(audience: Audience) -> None:
    hours = plays(audience).group_by(hour=pl.col("ts") // 3_600_000 % 24).len().sort("hour")["len"].to_list()
    assert sum(hours[18:24]) > 3 * sum(hours[2:8])


def test_an_outcome_names_the_recommendation_it_came_from(audience: Audience) -> None:
    asked = plays(audience).filter(pl.col("request_id").is_not_null())
    shown = audience.events.filter(pl.col("kind") == "impression")
    matched = asked.join(shown, on=["request_id", "profile_id", "title_id", "row", "rank"], how="semi")
    assert 0.5 < asked.height / plays(audience).height < 1.0
    assert matched.height > 0.99 * asked.height  # the oldest impression may lie before the oldest kept event


def test_as_of_moves_all_times_by_whole_weeks(audience: Audience) -> None:
    as_of_ms = EPOCH_MS + 10 * WEEK_MS + 12_345
    later = generate(profiles=4_000, titles=2_000, events=200_000, seed=7, as_of_ms=as_of_ms)
    moved = (later.events["ts"] - audience.events["ts"]).unique().to_list()
    assert moved == [10 * WEEK_MS]


@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"profiles": 0}, "profiles"),
        ({"titles": 9}, "titles"),
        ({"events": 0}, "events"),
        ({"seed": -1}, "seed"),
        ({"profiles": 2, "titles": 10, "events": 50_000}, "events"),
    ],
)
def test_impossible_sizes_are_refused_by_name(sizes: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        generate(**({"profiles": 5, "titles": 20, "events": 50, "seed": 0} | sizes))
    assert raised.value.field == field


def test_a_generated_set_passes_its_own_import(tmp_path) -> None:
    made = prepare_synthetic(tmp_path / "synthetic", profiles=200, titles=100, events=5_000)
    report = import_dataset(made.path, tmp_path / "data", "copy")
    assert report.dataset is not None, [str(problem) for problem in report.problems]
    assert report.dataset.snapshot == made.snapshot
