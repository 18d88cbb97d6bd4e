"""The ranker on a real small artifact: degraded cases, swaps, cache, batches."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from features.events import Event, EventKind
from features.popularity import TitleStats
from features.profiles import ProfileFeatures, ProfileState
from features.titles import Title
from serve.engines.base import Engine
from serve.engines.openvino import OpenVinoEngine
from serve.errors import ArtifactError, NotFound
from serve.ranking import Ranker, RankerSettings
from serve.schemas import HomePage, HomeQuery, SimilarTitles
from serve.scoring import RankingModel
from serve.tensors import Array
from tests.serve.conftest import export_small

NOW_MS = 1_767_225_600_000
QUERY = HomeQuery(now_ms=NOW_MS)
STATS = {f"t{number}": TitleStats(plays=number, finishes=1, trend=float(number)) for number in range(1, 141)}


def viewer(
    profile_id: str, events: Iterable[tuple[int, str]], *, region: str = "", kids: bool = False
) -> ProfileFeatures:
    """A profile that did these things, (title number, kind), one minute after the other."""
    state = ProfileState(region=(-1, region), kids=kids)
    for minute, (number, kind) in enumerate(events):
        state.apply(
            Event(
                event_id=f"{minute}",
                profile_id=profile_id,
                title_id=f"t{number}",
                kind=EventKind(kind),
                ts=NOW_MS - 10**7 + 60_000 * minute,
                position_s=30,
                duration_s=100,
            )
        )
    return ProfileFeatures(profile_id, known=True, history=state.history, stats=state.stats())


FAN = viewer("fan", [(1, "play"), (1, "finish"), (6, "play"), (6, "thumbs_up"), (11, "thumbs_down"), (12, "play")])


def random_viewer(number: int) -> ProfileFeatures:
    numbers = np.random.default_rng(number)
    kinds = ["play", "finish", "thumbs_up", "thumbs_down", "add_to_list"]
    events = [(int(numbers.integers(1, 151)), str(numbers.choice(kinds))) for _ in range(numbers.integers(0, 70))]
    return viewer(f"p{number}", events)


async def home(ranker: Ranker, profile: ProfileFeatures, query: HomeQuery = QUERY) -> HomePage:
    answer = await ranker.home(profile, query)
    page = HomePage.model_validate_json(answer.body("r"))
    assert answer.n_items == sum(len(row.items) for row in page.rows)
    return page


def on(page: HomePage) -> set[str]:
    return {item.title_id for row in page.rows for item in row.items}


def row_ids(page: HomePage) -> list[str]:
    return [row.id for row in page.rows]


@pytest.fixture(scope="session")
def small_model(small_artifacts: tuple[Path, Path]) -> RankingModel:
    return RankingModel.load(small_artifacts[0], device="cpu")


@pytest.fixture
def ranker() -> Ranker:
    """A ranker with nothing in it."""
    return Ranker(RankerSettings(device="cpu"))


@pytest.fixture
async def full(ranker: Ranker, small_model: RankingModel, small_titles: list[Title]) -> Ranker:
    """A ranker with model, catalogue and statistics; the model's engines are shared between tests."""
    ranker._model = small_model
    await ranker.show(small_titles)
    await ranker.note(STATS, NOW_MS)
    return ranker


async def test_a_page_of_a_model(full: Ranker, small_model: RankingModel) -> None:
    page = await home(full, FAN)
    assert page.degraded == ()
    assert page.versions.model == small_model.version == full.version
    assert page.generated_ts == NOW_MS
    assert row_ids(page)[:2] == ["continue_watching", "top_picks"]
    assert [item.title_id for item in page.rows[0].items] == ["t12", "t6"]
    assert page.rows[0].items[0].progress == pytest.approx(0.3)
    for item in page.rows[1].items:
        assert item.score is not None
        assert item.play is not None
    assert "t11" not in on(page)


async def test_the_last_event_changes_the_next_page(full: Ranker) -> None:
    before = await home(full, viewer("v", [(1, "play")]))
    first = before.rows[1].items[0].title_id
    after = await home(full, viewer("v", [(1, "play"), (int(first[1:]), "play")]))
    assert [item.title_id for item in after.rows[0].items] == [first, "t1"]
    assert before.rows[1] != after.rows[1]


async def test_without_a_catalogue_the_page_is_empty(ranker: Ranker) -> None:
    page = await home(ranker, FAN)
    assert (page.rows, page.degraded) == ((), ("catalogue_missing",))


async def test_without_a_model_popular_titles_answer(ranker: Ranker, small_titles: list[Title]) -> None:
    await ranker.show(small_titles)
    await ranker.note(STATS, NOW_MS)
    page = await home(ranker, FAN)
    assert page.degraded == ("model_missing",)
    assert page.versions.model is None
    assert {"continue_watching", "top_picks", "trending_now"} <= set(row_ids(page))
    top = page.rows[1]
    assert top.title == "Popular on Playhead"
    assert top.items[0].title_id == "t140"
    assert top.items[0].play is None


async def test_without_statistics_the_page_says_so(
    ranker: Ranker, small_model: RankingModel, small_titles: list[Title]
) -> None:
    ranker._model = small_model
    await ranker.show(small_titles)
    page = await home(ranker, FAN)
    assert page.degraded == ("statistics_missing",)
    assert "top_picks" in row_ids(page)


async def test_an_unknown_profile_gets_a_page_and_is_called_so(full: Ranker) -> None:
    page = await home(full, ProfileFeatures("stranger"))
    assert page.degraded == ("unknown_profile",)
    assert page.profile_id == "stranger"
    assert len(on(page)) > 50


async def test_a_new_profile_gets_a_page_and_is_called_so(full: Ranker) -> None:
    page = await home(full, viewer("new", [(3, "add_to_list")]))
    assert page.degraded == ("empty_history",)
    assert len(on(page)) > 50


async def test_without_the_store_a_viewer_is_remembered(full: Ranker) -> None:
    before = await home(full, FAN)
    page = await home(full, ProfileFeatures("fan", degraded=("features_timeout",)))
    assert page.degraded == ("features_timeout", "stale_profile")
    assert page.rows == before.rows


async def test_without_the_store_a_viewer_never_seen_is_treated_as_a_child(
    full: Ranker, small_titles: list[Title]
) -> None:
    for_kids = {title.title_id for title in small_titles if title.kids}
    down = ProfileFeatures("never-seen", degraded=("features_unavailable",))
    page = await home(full, down)
    assert page.degraded == ("features_unavailable",)
    assert on(page)
    assert on(page) <= for_kids
    assert not on(await home(full, down, replace(QUERY, kids=False))) <= for_kids, "unless the player says otherwise"


async def test_without_the_store_a_remembered_child_stays_one(full: Ranker, small_titles: list[Title]) -> None:
    await home(full, viewer("child", [(4, "play")], kids=True))
    page = await home(full, ProfileFeatures("child", degraded=("features_timeout",)), replace(QUERY, kids=False))
    assert on(page) <= {title.title_id for title in small_titles if title.kids}


@pytest.mark.parametrize("kids", [True, False])
@pytest.mark.parametrize("region", ["", "se", "us", "nowhere"])
async def test_region_and_kids_hold_on_home_and_similar(
    full: Ranker, small_titles: list[Title], region: str, *, kids: bool
) -> None:
    allowed = {
        title.title_id
        for title in small_titles
        if (not title.regions or region in title.regions) and (title.kids or not kids)
    }
    events = [(number, "finish" if number % 2 else "play") for number in range(1, 40)] + [(53, "add_to_list")]
    for profile, query in (
        (viewer("own", events, region=region, kids=kids), QUERY),
        (viewer("asked", events, region="us"), replace(QUERY, region=region, kids=kids)),
    ):
        page = await home(full, profile, query)
        assert on(page) <= allowed
    if kids:
        page = await home(full, viewer("child", events, region=region, kids=True), replace(QUERY, kids=False))
        assert on(page) <= allowed, "a kids profile stays one"
    answer = await full.similar("t7", replace(QUERY, region=region, kids=kids))
    similar = SimilarTitles.model_validate_json(answer.body("r"))
    assert similar.items
    assert {item.title_id for item in similar.items} <= allowed - {"t7"}


async def test_limits_hold(full: Ranker) -> None:
    page = await home(full, FAN, replace(QUERY, rows=3, items=4))
    assert len(page.rows) == 3
    assert all(len(row.items) <= 4 for row in page.rows)
    answer = await full.similar("t7", replace(QUERY, items=4))
    assert len(SimilarTitles.model_validate_json(answer.body("r")).items) == 4


async def test_what_was_watched_takes_no_candidates_place(full: Ranker, small_titles: list[Title]) -> None:
    left = {title.title_id for title in small_titles[100:] if not title.regions}
    much = viewer("much", [(number, "finish") for number in range(1, 101)])
    page = await home(full, much, replace(QUERY, items=50))
    assert {item.title_id for item in page.rows[0].items} == left
    assert all(item.score is not None for item in page.rows[0].items)


async def test_a_viewer_who_saw_everything_gets_a_page(full: Ranker, small_titles: list[Title]) -> None:
    everything = viewer("all", [(number, "finish") for number in range(1, 151)])
    page = await home(full, everything)
    assert row_ids(page) == ["watch_again"]


async def test_a_new_title_is_on_pages_and_has_similar_titles_at_once(full: Ranker, small_titles: list[Title]) -> None:
    new = Title(title_id="brand-new", name="Brand new", genres=("Comedy",), added_ts=NOW_MS)
    with pytest.raises(NotFound):
        await full.similar("brand-new", QUERY)
    version = full.version
    await full.show([*small_titles, new])
    assert full.version == version
    assert "brand-new" in on(await home(full, FAN))
    similar = SimilarTitles.model_validate_json((await full.similar("brand-new", QUERY)).body("r"))
    assert similar.items[0].score is not None
    watched = viewer("early", [(5, "play")])
    watched.history.apply(Event(event_id="x", profile_id="early", title_id="brand-new", kind=EventKind.PLAY, ts=NOW_MS))
    page = await home(full, watched)
    assert page.rows[0].items[0].title_id == "brand-new"
    assert page.degraded == ()


async def test_a_title_taken_down_is_gone(full: Ranker, small_titles: list[Title]) -> None:
    gone = (await home(full, FAN)).rows[1].items[0].title_id
    await full.show([title for title in small_titles if title.title_id != gone])
    assert gone not in on(await home(full, FAN))
    with pytest.raises(NotFound, match=gone):
        await full.similar(gone, QUERY)


async def test_similar_without_a_model_is_by_content(ranker: Ranker, small_titles: list[Title]) -> None:
    await ranker.show(small_titles)
    similar = SimilarTitles.model_validate_json((await ranker.similar("t20", QUERY)).body("r"))
    genres = {title.title_id: set(title.genres) for title in small_titles}
    assert similar.degraded == ("model_missing",)
    assert genres[similar.items[0].title_id] & genres["t20"]
    scores = [item.score for item in similar.items if item.score is not None]
    assert scores == sorted(scores, reverse=True)


async def test_remembered_states_change_no_page(full: Ranker, small_titles: list[Title]) -> None:
    profiles = [random_viewer(number) for number in range(8)]
    first = [(await full.home(profile, QUERY)).members for profile in profiles]
    assert full.memory is not None
    misses = full.memory.misses
    again = [(await full.home(profile, QUERY)).members for profile in profiles]
    assert full.memory.misses == misses
    assert full.memory.hits >= len(profiles)
    await full.show(list(small_titles))  # forgets
    assert [(await full.home(profile, QUERY)).members for profile in profiles] == first == again


async def test_a_page_does_not_depend_on_who_else_asks(full: Ranker) -> None:
    profiles = [random_viewer(number) for number in range(30)]
    alone = [await full.home(profile, QUERY) for profile in profiles]
    for count in (2, 3, 5, 30):
        together = await asyncio.gather(*[full.home(profile, QUERY) for profile in profiles[:count]])
        for one, other in zip(alone, together, strict=False):
            assert_same(HomePage.model_validate_json(one.body("")), HomePage.model_validate_json(other.body("")))


def assert_same(one: HomePage, other: HomePage) -> None:
    """The same page, but for near-ties: in another batch the engine adds up in another order."""
    assert row_ids(one) == row_ids(other)
    scores = [{item.title_id: item.score for row in page.rows for item in row.items} for page in (one, other)]
    common = scores[0].keys() & scores[1].keys()
    assert len(common) >= 0.95 * len(scores[0])
    for title_id in common:
        score = scores[1][title_id]
        assert scores[0][title_id] == (None if score is None else pytest.approx(score, abs=2e-4))


async def test_encoding_ahead_saves_the_request_the_encoder(full: Ranker) -> None:
    profile = random_viewer(3)
    full.prepare(profile)
    answer = await full.home(profile, QUERY)
    assert "encoder" not in answer.timings_ms
    assert "encoder" in (await full.home(random_viewer(4), QUERY)).timings_ms


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory, small_titles: list[Title]) -> Path:
    """A version whose vocabulary holds other titles, in another order; one of them is in no catalogue."""
    title_ids = [title.title_id for title in small_titles[20:145]]
    return export_small(tmp_path_factory.mktemp("reordered"), ["gone", *title_ids[::-1]])


async def test_whom_a_version_knew_the_next_one_knows_too(
    full: Ranker, reordered: Path, small_titles: list[Title], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[Engine] = []

    def run_beside(engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
        beside.append(engine)
        return engine(inputs)

    def fail(engine: Engine, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError("gone")

    monkeypatch.setattr(OpenVinoEngine, "run_beside", run_beside)
    monkeypatch.setattr(OpenVinoEngine, "is_beside", True)
    profiles = [random_viewer(number) for number in range(14)]
    for profile in profiles:
        await home(full, profile)
    heir, fresh = Ranker(RankerSettings(device="cpu")), Ranker(RankerSettings(device="cpu"))
    assert heir.inheritance(full) is None, "it has no model"
    await heir.show_as(full)
    await fresh.show(small_titles)
    for ranker in (heir, fresh):
        await ranker.note(STATS, NOW_MS)
        await ranker.load(reordered)
    assert heir.inheritance(fresh) is None, "of another catalogue"
    inheritance = heir.inheritance(full)
    assert inheritance is not None
    inheritance.encode(4)
    assert [engine.graph for engine in beside] == ["encoder"]
    inheritance.encode(5)
    assert len(beside) == 1, "more than the model takes at a time are encoded one by one"
    monkeypatch.setattr(OpenVinoEngine, "run_beside", fail)
    inheritance.encode(4)
    assert len(inheritance) == 1
    later = viewer("p13", [(1, "play")])
    assert full.memory is not None
    full.memory.meet(later, full._live.stock.catalogue)  # type: ignore[union-attr]
    assert inheritance.hand_over() == 8, "one has another history by now"
    for profile in (*profiles[:13], later):
        answer = await heir.home(profile, QUERY)
        known = profile in profiles[5:13]
        assert ("encoder" not in answer.timings_ms) is known, "the last seen come first"
        assert_same(HomePage.model_validate_json(answer.body("r")), await home(fresh, profile))
    assert heir.memory is not None
    assert (heir.memory.hits, heir.memory.misses) == (12, 2)


async def test_swapping_models_under_load_drops_no_request(
    small_artifacts: tuple[Path, Path], small_titles: list[Title]
) -> None:
    ranker = Ranker(RankerSettings(device="cpu"))
    await ranker.show(small_titles)
    await ranker.note(STATS, NOW_MS)
    await ranker.load(small_artifacts[0])
    swapping = True
    versions: list[str | None] = []

    async def ask(number: int) -> None:
        while swapping:
            page = await home(ranker, random_viewer(number))
            assert page.degraded in {(), ("empty_history",)}
            versions.append(page.versions.model)
            await asyncio.sleep(0)

    askers = [asyncio.create_task(ask(number)) for number in range(6)]
    assert await ranker.load(small_artifacts[1]) == small_artifacts[1].name
    await ranker.show(small_titles[:120])
    await ranker.note(STATS, NOW_MS)
    await asyncio.sleep(0.05)
    swapping = False
    await asyncio.gather(*askers)
    names = [path.name for path in small_artifacts]
    assert set(versions) == set(names)
    assert versions[-1] == names[1]
    assert versions.index(names[1]) > 5, "the old version answers while the new one loads"


@pytest.mark.parametrize("damage", ["missing", "truncated", "swapped"])
async def test_a_damaged_model_is_refused_and_the_old_one_keeps_serving(
    full: Ranker, small_artifacts: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    broken = tmp_path / small_artifacts[1].name
    shutil.copytree(small_artifacts[1], broken)
    file = broken / "openvino" / "ranker.bin"
    if damage == "missing":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-4] if damage == "truncated" else content[::-1])
    before = await home(full, FAN)
    with pytest.raises(ArtifactError, match=r"ranker\.bin"):
        await full.load(broken)
    assert await home(full, FAN) == before


async def test_one_history_that_the_model_cannot_take_costs_only_its_own_page(full: Ranker) -> None:
    profiles = [random_viewer(number) for number in range(5)]
    alone = [await home(full, profile) for profile in profiles]
    assert full.memory is not None
    poisoned = viewer("poisoned", [(1, "play")])
    full.memory.meet(poisoned, full._live.stock.catalogue).visits = np.array([[10**6, 1, 1]])  # type: ignore[union-attr]
    pages = await asyncio.gather(*[home(full, profile) for profile in (*profiles[:2], poisoned, *profiles[2:])])
    assert pages[2].degraded == ("model_failed",)
    assert on(pages[2])
    for page, other in zip(alone, pages[:2] + pages[3:], strict=True):
        assert_same(page, other)


async def test_a_caller_that_gives_up_leaves_the_others_alone(full: Ranker) -> None:
    tasks = [asyncio.create_task(full.home(random_viewer(number), QUERY)) for number in range(6)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    for task in tasks[1::2]:
        assert orjson.loads((await task).body("r"))["rows"]
    for task in tasks[::2]:
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()


async def test_a_twin_shows_the_same_without_the_model_and_meets_viewers_ahead(
    ranker: Ranker, small_model: RankingModel, small_titles: list[Title]
) -> None:
    await ranker.show(small_titles)
    await ranker.note(STATS, NOW_MS)
    twin = ranker.twin()
    assert (await home(twin, FAN)).rows == (await home(ranker, FAN)).rows
    assert twin.memory is not ranker.memory
    await twin._change(model=small_model)
    twin.prepare(FAN)
    assert twin.memory is not None
    assert (twin.memory.hits, list(twin.memory.known())) == (0, ["fan"])
    page = await home(twin, FAN)
    assert page.versions.model == small_model.version
    assert page.degraded == ()
    assert twin.memory.hits == 1, "the history was encoded before it came"
    assert ranker.version is None


async def test_another_rankers_catalogue_is_shown_too(full: Ranker, ranker: Ranker, small_titles: list[Title]) -> None:
    other = Ranker(RankerSettings(device="cpu"))
    new = Title(title_id="new", name="New", genres=("Drama",))
    await other.show([*small_titles, new])
    await full.show_as(other)
    assert full.n_titles == other.n_titles
    assert "new" in full.title_ids


async def test_an_empty_catalogue_shows_nothing(ranker: Ranker, small_titles: list[Title]) -> None:
    await ranker.show(small_titles)
    await ranker.show([])
    assert ranker.n_titles == 0
    assert not on(await home(ranker, FAN))
