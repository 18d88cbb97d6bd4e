"""Text files of interactions: tolerant of form, strict about content."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidInput
from training.recommend.interactions import Interactions, read_interactions


def read(tmp_path, text, name="file.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_interactions(path)


def histories(interactions):
    """user -> title ids, in order."""
    return {
        user: [interactions.titles[row - 1] for row in interactions.rows[start:stop]]
        for user, start, stop in zip(
            interactions.users, interactions.offsets[:-1], interactions.offsets[1:], strict=True
        )
    }


EXPECTED = {"a": ["x", "y"], "b": ["y"]}


@pytest.mark.parametrize(
    "text",
    [
        "a,x,10\nb,y,11\na,y,12\n",
        "user,item,timestamp\na,x,10\nb,y,11\na,y,12\n",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\na\tx\t5\t10\nb\ty\t1\t11\na\ty\t3\t12\n",
        "a::x::5::10\nb::y::4::11\na::y::1::12\n",
        "a;x\nb;y\na;y\n",
        "timestamp,item,user\n12,y,a\n11,y,b\n10,x,a\n",
        "\ufeffa, x\n\nb, y\r\na,y\n\n",
    ],
    ids=["plain", "header", "recbole", "movielens", "semicolon", "reordered", "blanks"],
)
def test_forms(tmp_path, text):
    assert histories(read(tmp_path, text)) == EXPECTED


def test_without_times_the_order_of_the_file_counts(tmp_path):
    interactions = read(tmp_path, "a,y\na,x\n")
    assert histories(interactions) == {"a": ["y", "x"]}
    assert not interactions.timed
    assert not interactions.times.any()


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    assert histories(read(tmp_path, "a,z,5\na,y,5\na,x,4\n")) == {"a": ["x", "z", "y"]}


def test_milliseconds_are_brought_to_seconds(tmp_path):
    assert read(tmp_path, "a,x,1700000000123\n").times.tolist() == [1_700_000_000]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("user,item,timestamp\na,x,10\na,y,soon\n", 3),
        ("a,x\na,\n", 2),
        ("a,x\n\na,y,z\n", 3),
        ("a,x,1\na,y,nan\n", 2),
        ("a,x,1\na,y,-5\n", 2),
        ("alone\n", 1),
        ("user,film\na,x\n", 1),
        ("a,b,c,d,e,f\n", 1),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, row):
    with pytest.raises(InvalidInput, match=f"row {row}:") as raised:
        read(tmp_path, text)
    assert raised.value.expected


@pytest.mark.parametrize("content", [b"", b"\n\n", b"user,item\n", b"\xff\xfe\x00a"])
def test_a_file_without_interactions_is_refused(tmp_path, content):
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="file"):
        read_interactions(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="absent"):
        read_interactions(tmp_path / "absent.csv")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz"), st.integers(0, 3).map(float)), max_size=30)
)
def test_nothing_is_lost_and_each_user_is_in_order(triples):
    interactions = Interactions.build("list", triples)
    assert interactions.offsets[-1] == len(triples) == len(interactions.rows)
    for user, start, stop in zip(interactions.users, interactions.offsets[:-1], interactions.offsets[1:], strict=True):
        own = sorted(((time, place, title) for place, (u, title, time) in enumerate(triples) if u == user))
        assert [interactions.titles[row - 1] for row in interactions.rows[start:stop]] == [entry[2] for entry in own]
        assert (np.diff(interactions.times[start:stop]) >= 0).all()
