"""Exploration: propensities are exact, one slot changes at most, and a page keeps its promises."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from features.profiles import ProfileFeatures
from features.titles import Title
from serve.exploration import Draw, Exploration, Slots
from serve.pages import MAIN_ROW, PageBuilder, Setting, Slate
from serve.ranking import Ranker, RankerSettings
from serve.schemas import HomePage, HomeQuery
from serve.scoring import RankingModel
from tests.serve.test_pages import make_setting, settings_of_all_kinds, shown
from tests.serve.test_ranking import FAN, NOW_MS, STATS, viewer

EXPLORATION = Exploration(epsilon=0.2, slots=4)


def explored(setting: Setting, exploration: Exploration, draw: Draw | None) -> tuple[list[Slate], Slots | None]:
    page, free = PageBuilder().fill(setting, rows=4, items=6)
    return page, exploration.explore(page, setting.ranking, free, draw)


def main_row(page: list[Slate]) -> list[int]:
    return next((slate.rows.tolist() for slate in page if slate.id == MAIN_ROW), [])


def test_frequencies_over_request_ids_are_the_propensities() -> None:
    """Chi-square of each slot's title over 30,000 request ids; what is rare is taken together."""
    setting = make_setting(seed=5, titles=120, events=10, candidates=60)
    ids = 30_000
    seen: list[Counter[int]] = [Counter() for _ in range(EXPLORATION.slots)]
    told: list[dict[int, float]] = [{} for _ in range(EXPLORATION.slots)]
    pages = 0
    page, free = PageBuilder().fill(setting, rows=4, items=6)
    (main,) = (slate for slate in page if slate.id == MAIN_ROW)
    before = main.rows
    for number in range(ids):
        main.rows = before
        slots = EXPLORATION.explore(page, setting.ranking, free, Draw.of(f"r{number}", "p"))
        assert slots is not None
        pages += slots.explored is not None
        for slot, (row, propensity) in enumerate(zip(slots.rows, slots.propensities, strict=True)):
            seen[slot][row] += 1
            assert told[slot].setdefault(row, propensity) == propensity
    spread = (ids * 0.2 * 0.8) ** 0.5
    assert abs(pages - 0.2 * ids) < 4 * spread
    for slot in range(EXPLORATION.slots):
        assert sum(told[slot].values()) == pytest.approx(1.0), "each candidate was drawn at some time"
        common = [row for row, propensity in told[slot].items() if propensity * ids >= 10]
        expected = [told[slot][row] * ids for row in common]
        counts: list[float] = [seen[slot][row] for row in common]
        if len(common) < len(told[slot]):
            expected.append(ids - sum(expected))
            counts.append(ids - sum(counts))
        statistic = float(((np.array(counts) - expected) ** 2 / np.array(expected)).sum())
        assert chi2.sf(statistic, len(expected) - 1) > 1e-3, (slot, statistic)


@settings(max_examples=150, deadline=None)
@given(settings_of_all_kinds, st.integers(0, 10**6))
def test_one_slot_changes_at_most_and_the_page_keeps_its_promises(setting: Setting, number: int) -> None:
    draw = Draw.of(str(number), "p")
    before, _ = explored(setting, Exploration(), None)
    page, slots = explored(setting, EXPLORATION, Draw(0.0, draw.slot, draw.title))  # surely explored
    everything = [row for slate in page for row in slate.rows.tolist()]
    assert len(set(everything)) == len(everything), "no title twice"
    assert setting.shelf.available[everything].all()
    assert not set(everything) & set(setting.viewer.disliked.tolist())
    assert not set(main_row(page)) & set(setting.viewer.watched.tolist())
    if slots is None or slots.explored is None:
        assert shown(page) == shown(before)
        assert slots is None or set(slots.propensities) == {1.0}
        return
    new = main_row(page)[slots.explored]
    assert new in setting.ranking.rows
    assert new not in [row for slate in before for row in slate.rows.tolist()]
    put_back = [
        (name, [main_row(before)[slots.explored] if row == new else row for row in rows], progress)
        for name, rows, progress in shown(page)
    ]
    assert put_back == shown(before), "all other slots are as they were"
    assert slots.rows == tuple(main_row(page)[: EXPLORATION.slots])


def test_a_draw_is_the_same_again_and_another_for_another_request_or_profile() -> None:
    assert Draw.of("r", "p") == Draw.of("r", "p")
    draws = {Draw.of(request_id, profile_id) for request_id in "rs" for profile_id in "pq"}
    assert len({number for draw in draws for number in (draw.explores, draw.slot, draw.title)}) == 12


@pytest.fixture
async def ranker(small_artifacts: tuple[Path, Path], small_titles: list[Title]) -> Ranker:
    """A ranker that explores a fifth of its pages."""
    ranker = Ranker(RankerSettings(device="cpu", exploration=Exploration(epsilon=0.2, slots=5)))
    ranker._model = RankingModel.load(small_artifacts[0], device="cpu")
    await ranker.show(small_titles)
    await ranker.note(STATS, NOW_MS)
    return ranker


async def test_a_ranker_says_what_it_explored(ranker: Ranker) -> None:
    plain = await ranker.home(FAN, HomeQuery(now_ms=NOW_MS))
    assert plain.slots is not None
    assert {propensity for _, propensity in plain.slots} == {1.0}
    pages = [await ranker.home(FAN, HomeQuery(now_ms=NOW_MS, request_id=f"r{number}")) for number in range(200)]
    assert 15 < sum(page.explored is not None for page in pages) < 70
    for answer in pages:
        page = HomePage.model_validate_json(answer.body("r"))
        (row,) = (row for row in page.rows if row.id == MAIN_ROW)
        assert answer.slots is not None
        assert tuple(item.title_id for item in row.items[:5]) == tuple(title_id for title_id, _ in answer.slots)
        both = zip(answer.slots, plain.slots, strict=True)
        changed = [slot for slot, (one, other) in enumerate(both) if one[0] != other[0]]
        assert changed == ([] if answer.explored is None else [answer.explored])
        for slot, (_, propensity) in enumerate(answer.slots):
            assert propensity == pytest.approx(1 - 0.2 / 5) or (slot == answer.explored and propensity < 0.2 / 5)
        assert all(item.score is not None for item in row.items), "what is drawn is a candidate"


async def test_kids_see_what_is_for_kids_and_strangers_are_explored_too(
    ranker: Ranker, small_titles: list[Title]
) -> None:
    for_kids = {title.title_id for title in small_titles if title.kids}
    child = viewer("child", [(4, "finish")], kids=True)
    asked = HomeQuery(now_ms=NOW_MS, rows=3, items=5)
    pages = [await ranker.home(child, replace(asked, request_id=f"r{number}")) for number in range(60)]
    assert any(page.explored is not None for page in pages)
    assert all({title_id for _, row in page.shown for title_id in row} <= for_kids for page in pages)
    stranger = await ranker.home(ProfileFeatures("new"), HomeQuery(now_ms=NOW_MS, request_id="r"))
    assert stranger.degraded == ("unknown_profile",)
    assert stranger.slots is not None


async def test_degraded_pages_are_not_explored(ranker: Ranker, small_titles: list[Title]) -> None:
    away = ProfileFeatures("p1", degraded=("store_timeout",))
    popular = Ranker(ranker._settings)
    await popular.show(small_titles)
    await popular.note(STATS, NOW_MS)
    for number in range(40):
        query = HomeQuery(now_ms=NOW_MS, request_id=f"r{number}")
        for answer in (await ranker.home(away, query), await popular.home(FAN, query)):
            assert (answer.slots, answer.explored) == (None, None)
