import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.titles import Title
from serve.catalogue import Catalogue
from serve.pages import ESTIMATES, Ranking, Slate
from serve.rendering import render_items, render_rows
from serve.schemas import MAX_ITEMS, Answer, HomePage, Item, Row, SimilarTitles

TITLES = [Title(title_id=f"t{row}", name=f'"{row}" \\ \u00e9', year=row, genres=("Drama",)) for row in range(1, 80)]
CATALOGUE = Catalogue.build(TITLES, {title.title_id: title.year for title in TITLES})


def slate(identifier: str, rows: list[int], progress: tuple[float, ...] | None = None) -> Slate:
    return Slate(
        id=identifier,
        title=f'{identifier} "title"',
        reason="r\n",
        rows=np.array(rows, dtype=np.int64),
        progress=progress,
    )


def ranking(rows: list[int], values: np.ndarray) -> Ranking:
    return Ranking.build(np.array(rows, dtype=np.int64), list(values.astype(np.float32)), personal=True)


def expected_item(row: int, rank: int, known: dict[int, list[float]], progress: float | None = None) -> Item:
    title = TITLES[row - 1]
    estimates: list[float | None] = [round(float(value), 4) for value in known[row]] if row in known else [None] * 4
    return Item(
        title_id=title.title_id,
        name=title.name,
        year=title.year,
        genres=title.genres,
        rank=rank,
        progress=progress,
        **dict(zip(ESTIMATES, estimates, strict=True)),  # type: ignore[arg-type]
    )


@given(
    lengths=st.lists(st.integers(1, 7), max_size=8),
    candidates=st.integers(0, 79),
    seed=st.integers(0, 1000),
    playing=st.booleans(),
)
def test_bytes_are_the_page_that_the_schema_describes(
    lengths: list[int], candidates: int, seed: int, *, playing: bool
) -> None:
    numbers = np.random.default_rng(seed)
    rows = (numbers.permutation(79) + 1).tolist()
    values = np.vstack([numbers.normal(size=candidates) * 100, numbers.random((3, candidates))])
    known = {row: values[:, place].tolist() for place, row in enumerate(rows[-candidates:] if candidates else [])}
    page, expected, start = [], [], 0
    for number, length in enumerate(lengths):
        part = rows[start : start + length]
        start += length
        progress = tuple(round(float(share), 4) for share in numbers.random(length)) if playing and not number else None
        page.append(slate(f"row{number}", part, progress))
        items = [expected_item(row, rank, known, progress[rank] if progress else None) for rank, row in enumerate(part)]
        expected.append(Row(id=f"row{number}", title=f'row{number} "title"', reason="r\n", items=tuple(items)))
    rendered = render_rows(page, CATALOGUE.fragments, ranking(list(known), values))
    got = [Row.model_validate(row) for row in orjson.loads(rendered)]
    assert [row.model_copy(update={"items": ()}) for row in got] == [
        row.model_copy(update={"items": ()}) for row in expected
    ]
    for got_row, expected_row in zip(got, expected, strict=True):
        for one, other in zip(got_row.items, expected_row.items, strict=True):
            assert one.model_dump(exclude=set(ESTIMATES)) == other.model_dump(exclude=set(ESTIMATES))
            for name in ESTIMATES:
                wanted = getattr(other, name)
                assert getattr(one, name) == (None if wanted is None else pytest.approx(wanted, abs=2e-4, rel=1e-6))


def test_the_longest_row_and_similar_titles_fit() -> None:
    rows = list(range(1, MAX_ITEMS + 1))
    page = render_rows([slate("long", rows)], CATALOGUE.fragments, ranking([], np.zeros((4, 0))))
    assert len(orjson.loads(page)[0]["items"]) == MAX_ITEMS
    items = render_items(np.array(rows), CATALOGUE.fragments, np.linspace(1, 0, MAX_ITEMS, dtype=np.float32))
    parsed = [Item.model_validate(item) for item in orjson.loads(items)]
    assert [item.rank for item in parsed] == list(range(MAX_ITEMS))
    assert parsed[0].score == 1.0
    assert parsed[0].play is None
    assert render_items(np.array([], dtype=np.int64), CATALOGUE.fragments, np.array([], dtype=np.float32)) == b"[]"


@pytest.mark.parametrize("wrong", [-0.2, 1.5, np.nan, np.inf, -np.inf, 1e30])
def test_a_probability_that_is_none_does_not_break_the_page(wrong: float) -> None:
    values = np.full((4, 1), wrong)
    values[0] = 1.0
    (row,) = orjson.loads(render_rows([slate("a", [3])], CATALOGUE.fragments, ranking([3], values)))
    shown = Row.model_validate(row).items[0]
    assert shown.play in (0.0, None)


def test_an_answer_is_a_home_page() -> None:
    page = render_rows([slate("a", [1, 2])], CATALOGUE.fragments, ranking([2], np.full((4, 1), 0.5)))
    answer = Answer(
        members=b'"profile_id":"p","rows":%b' % page, versions={"model": "v"}, degraded=("why",), generated_ts=7
    )
    parsed = HomePage.model_validate_json(answer.body('r"1'))
    assert (parsed.request_id, parsed.profile_id, parsed.versions.model) == ('r"1', "p", "v")
    assert (parsed.degraded, parsed.generated_ts, len(parsed.rows[0].items)) == (("why",), 7, 2)


def test_the_last_resort_is_a_home_page_too() -> None:
    parsed = HomePage.model_validate_json(Answer.empty_home('p"\u00e9', ("ranker_timeout",), 5).body("r"))
    assert (parsed.profile_id, parsed.rows, parsed.degraded) == ('p"\u00e9', (), ("ranker_timeout",))


@pytest.mark.parametrize("model", [HomePage, SimilarTitles])
def test_examples_fit_their_schema(model: type[HomePage | SimilarTitles]) -> None:
    for example in model.model_json_schema()["examples"]:
        model.model_validate(example)
