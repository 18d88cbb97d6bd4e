from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.titles import Title, content_features
from serve.catalogue import Catalogue, load_titles
from serve.errors import InvalidInput

REGIONS = ["", "de", "se", "us", "nowhere"]


def title(title_id: str, **fields: object) -> Title:
    return Title.model_validate({"title_id": title_id, "name": title_id.upper()} | fields)


def test_titles_unknown_to_the_model_follow_its_rows_oldest_first() -> None:
    titles = [title("new", added_ts=9), title("b"), title("older", added_ts=3), title("a")]
    catalogue = Catalogue.build(titles, {"a": 1, "gone": 2, "b": 3})
    assert catalogue.title_ids == ("", "a", "gone", "b", "older", "new")
    assert catalogue.embedded.tolist() == [0, 1, 2, 3, 0, 0]
    assert [catalogue.rows[title_id] for title_id in catalogue.title_ids[1:]] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(catalogue.content[[1, 3, 5]], content_features([titles[3], titles[1], titles[0]]))


def test_a_title_that_only_the_model_knows_is_never_available() -> None:
    catalogue = Catalogue.build([title("a", kids=True)], {"a": 1, "gone": 2})
    assert len(catalogue) == 1
    assert not catalogue.content[2].any()
    for kids in (False, True):
        assert catalogue.available("", kids=kids).tolist() == [False, True, False]


def test_an_empty_catalogue_has_nothing_to_show() -> None:
    catalogue = Catalogue.build([])
    assert len(catalogue) == 0
    assert catalogue.available("se", kids=False).tolist() == [False]


def test_of_titles_with_one_id_the_last_counts() -> None:
    assert Catalogue.build([title("a"), title("a", name="Again")]).names == ("", "Again")


@given(
    kinds=st.lists(st.tuples(st.lists(st.sampled_from(["de", "se", "us"]), unique=True), st.booleans()), max_size=20),
    region=st.sampled_from(REGIONS),
    kids=st.booleans(),
)
def test_available_is_what_region_and_kids_allow(
    kinds: list[tuple[list[str], bool]], region: str, *, kids: bool
) -> None:
    titles = [title(f"t{number}", regions=regions, kids=flag) for number, (regions, flag) in enumerate(kinds)]
    catalogue = Catalogue.build(titles)
    mask = catalogue.available(region, kids=kids)
    for entry in titles:
        allowed = (not entry.regions or region in entry.regions) and (entry.kids or not kids)
        assert mask[catalogue.rows[entry.title_id]] == allowed
    assert (mask == catalogue.available(catalogue.known_region(region), kids=kids)).all()


def test_genres_of_titles_and_how_telling_they_are() -> None:
    catalogue = Catalogue.build([title("a", genres=("Drama", "War")), title("b", genres=("Drama",)), title("c")])
    assert catalogue.genres == ("Drama", "War")
    assert catalogue.members.tolist() == [[False, True, True, False], [False, True, False, False]]
    assert catalogue.rarity.tolist() == pytest.approx([np.log(3 / 2), np.log(3)])


def test_fragments_are_json_of_the_title() -> None:
    catalogue = Catalogue.build([title("a", name='Say "Hi"\n\u2603', year=1999, genres=("Drama",))])
    assert orjson.loads(catalogue.fragments[1].removeprefix(b"},") + b"}") == {
        "title_id": "a",
        "name": 'Say "Hi"\n\u2603',
        "year": 1999,
        "genres": ["Drama"],
    }


def test_titles_survive_the_file(tmp_path: Path) -> None:
    titles = (title("a", genres=("Drama",), regions=("se",), kids=True, year=1990, added_ts=5), title("b"))
    pq.write_table(pa.Table.from_pylist([entry.model_dump() for entry in titles]), tmp_path / "titles.parquet")
    assert load_titles(tmp_path / "titles.parquet") == titles


def test_a_wrong_row_is_named(tmp_path: Path) -> None:
    rows = [title("a").model_dump(), title("b").model_dump() | {"year": -1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "titles.parquet")
    with pytest.raises(InvalidInput, match=r"titles\.parquet row 1 column year: got '-1'|row 1 column year: got -1"):
        load_titles(tmp_path / "titles.parquet")


@pytest.mark.parametrize("content", [None, b"", b"no parquet"])
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "titles.parquet").write_bytes(content)
    with pytest.raises(InvalidInput, match="expected a Parquet file"):
        load_titles(tmp_path / "titles.parquet")


def test_a_file_without_titles_is_refused(tmp_path: Path) -> None:
    """It would empty every page of a service that shows the catalogue before."""
    path = tmp_path / "titles.parquet"
    empty = {name: pa.array([], pa.string()) for name in Title.model_fields}
    pq.write_table(pa.table(empty), path)
    with pytest.raises(InvalidInput, match="at least one title"):
        load_titles(path)
