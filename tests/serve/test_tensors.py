"""Specs that contradict themselves are refused; examples are resized to valid inputs; parity sees what differs."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter, ValidationError

from serve.engines.parity import differences
from serve.errors import InvalidInput
from serve.tensors import GraphSpec, InputCheck, Ranking, TensorSpec, resized
from tests.contracts.small_model import MAX_B, MAX_N, MAX_T, K, example, specs

X = TensorSpec("x", "float32", ("B", 2), low=0, high=1)
Y = TensorSpec("y", "float32", ("B",))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (lambda: TensorSpec("x y", "float32", ("B",)), "pattern"),
        (lambda: TensorSpec("x", "float64", ("B",)), "float64"),
        (lambda: TensorSpec("x", "float32", ("B", 0)), "greater than or equal to 1"),
        (lambda: TensorSpec("x", "float32", ("B",), low=2, high=1), "above"),
        (lambda: TensorSpec("x", "float32", ("B",), low=math.nan), "low"),
        (lambda: TensorSpec("x", "bool", ("B",), low=0), "bool"),
        (lambda: TensorSpec("x", "float32", ("B",), indexes="B"), "index"),
        (lambda: GraphSpec((X,), (X,), {"B": (1, 2)}), "differ"),
        (lambda: GraphSpec((), (Y,), {}), "at least one"),
        (lambda: GraphSpec((X,), (Y,), {}), "limits"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 2), "T": (1, 2)}), "limits"),
        (lambda: GraphSpec((X,), (Y,), {"B": (3, 2)}), "above"),
        (lambda: GraphSpec((X,), (Y,), {"B": (0, 2)}), "greater than or equal to 1"),
        (lambda: GraphSpec((X,), (TensorSpec("y", "float32", ("T",)),), {"B": (1, 2)}), "no input has"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 2)}, ranking=Ranking("y", "y")), "ranking"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 2)}, tolerance=0), "tolerance"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 9)}, buckets=({"B": (1, 5, 4)},)), "must rise and be within 1 to 9"),
        (lambda: GraphSpec((X,), (Y,), {"B": (2, 9)}, buckets=({"B": (1, 2, 4)},)), "must rise and be within 2 to 9"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 9)}, buckets=({"B": (1, 2, 10)},)), "must rise and be within 1 to 9"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 9)}, buckets=({"T": (1, 2, 3)},)), "T must rise"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 9)}, buckets=({},)), "at least 1"),
        (lambda: GraphSpec((X,), (Y,), {"B": (1, 9)}, precision="bfloat16"), "float16"),  # type: ignore[arg-type]
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(spec: Any, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        spec()


@pytest.mark.parametrize("graph", ["titles", "encoder", "ranker"])
def test_a_spec_survives_json(graph: str) -> None:
    adapter = TypeAdapter(GraphSpec)
    assert adapter.validate_json(adapter.dump_json(specs()[graph])) == specs()[graph]


@given(hnp.arrays(np.float32, (3, 2), elements=st.floats(width=32)))
def test_a_range_holds_for_every_value(values: np.ndarray) -> None:
    check = InputCheck("g", GraphSpec((X,), (Y,), {"B": (1, 4)}))
    valid = bool(((values >= 0) & (values <= 1)).all())
    if not valid:
        with pytest.raises(InvalidInput, match=r"g\.x"):
            check({"x": values}, {}, {})
        return
    checked, sizes = check({"x": values}, {}, {})
    assert checked["x"] is values
    assert sizes == {"B": 3}


@given(
    st.sampled_from(["titles", "encoder", "ranker"]),
    st.fixed_dictionaries(
        {}, optional={"B": st.integers(1, MAX_B), "T": st.integers(1, MAX_T), "N": st.integers(K + 1, MAX_N)}
    ),
)
def test_resized_examples_are_valid(graph: str, sizes: dict[str, int]) -> None:
    spec = specs()[graph]
    _, seen = InputCheck(graph, spec)(resized(spec, example(graph), sizes), {}, {})
    assert seen == {dimension: {"B": 3, "T": 7, "N": 50, **sizes}[dimension] for dimension in spec.limits}


class TestDifferences:
    spec = specs()["ranker"]

    def outputs(self) -> dict[str, np.ndarray]:
        score = np.linspace(2, 1, K, dtype=np.float32)[None].repeat(2, axis=0)
        items = np.arange(1, K + 1)[None].repeat(2, axis=0)
        rest = {name: items.astype(np.float32) / 100 for name in ("retrieval", "play", "finish", "thumbs_up")}
        return {"candidates": items, "score": score, **rest}

    def test_equal_is_zero(self) -> None:
        assert set(differences(self.spec, self.outputs(), self.outputs()).values()) == {0.0}

    def test_near_ties_may_swap(self) -> None:
        expected, actual = self.outputs(), self.outputs()
        for outputs in (expected, actual):
            outputs["score"][0, 4:6] = 1.5
        for name in actual:
            if name != "score":
                actual[name][0, [4, 5]] = actual[name][0, [5, 4]]
        assert max(differences(self.spec, expected, actual).values()) == 0

    def test_a_wrong_order_is_seen(self) -> None:
        actual = {name: array[:, ::-1].copy() for name, array in self.outputs().items()}
        assert differences(self.spec, self.outputs(), actual)["score"] > 0.4

    def test_other_items_are_seen(self) -> None:
        actual = self.outputs()
        actual["candidates"] = actual["candidates"] + 100
        assert differences(self.spec, self.outputs(), actual)["candidates"] == math.inf

    def test_a_value_at_the_wrong_item_is_seen(self) -> None:
        actual = self.outputs()
        actual["play"][1, [0, 5]] = actual["play"][1, [5, 0]]
        assert differences(self.spec, self.outputs(), actual)["play"] == pytest.approx(0.05)

    @pytest.mark.parametrize("change", [lambda a: a * np.nan, lambda a: a[:, :1], lambda a: a.astype(np.float64)])
    def test_nan_shape_and_dtype_are_no_agreement(self, change: Any) -> None:
        actual = self.outputs()
        actual["finish"] = change(actual["finish"])
        assert differences(self.spec, self.outputs(), actual)["finish"] == math.inf

    def test_places_with_no_item_do_not_count(self) -> None:
        expected, actual = self.outputs(), self.outputs()
        for outputs in (expected, actual):
            outputs["score"][0, 3:] = -1e31
        actual["candidates"][0, 3:] = 7
        actual["play"][0, 3:] = 9
        assert max(differences(self.spec, expected, actual).values()) == 0


FRAMES = GraphSpec(
    inputs=(TensorSpec("frames", "float32", ("B", "H", "W")),),
    outputs=(Y,),
    limits={"B": (1, 16), "H": (8, 2160), "W": (8, 4096)},
    buckets=({"H": (8, 540, 1080), "W": (8, 960, 1920)}, {"B": (1, 1, 2)}),
)


@pytest.mark.parametrize(
    ("sizes", "place"),
    [
        ({"B": 16, "H": 1080, "W": 1920}, 0),
        ({"B": 1, "H": 8, "W": 8}, 0),
        ({"B": 2, "H": 1081, "W": 8}, 1),
        ({"B": 2, "H": 2160, "W": 4096}, 1),
        ({"B": 3, "H": 1081, "W": 8}, None),
        ({"B": 3}, 0),
        ({"H": 2160}, 1),
        ({}, 0),
    ],
)
def test_sizes_find_their_bucket(sizes: dict[str, int], place: int | None) -> None:
    assert FRAMES.bucket(sizes) == place
    assert specs()["encoder"].bucket(sizes) == 0  # no buckets: all that is within the limits


def test_a_call_that_fits_no_bucket_is_refused() -> None:
    check = InputCheck("g", FRAMES)
    check({"frames": np.zeros((2, 1200, 8), np.float32)}, {}, {})
    with pytest.raises(InvalidInput) as caught:
        check({"frames": np.zeros((3, 1200, 8), np.float32)}, {}, {})
    assert (caught.value.field, caught.value.got) == ("g", "'B = 3, H = 1200, W = 8'")


def test_fixed_sizes_keep_the_buckets_that_they_fit() -> None:
    large = FRAMES.fixed({"H": 2160})
    assert large.limits == {"B": (1, 16), "H": (2160, 2160), "W": (8, 4096)}
    assert large.buckets == ({"B": (1, 1, 2), "H": (2160, 2160, 2160)},)
    with pytest.raises(InvalidInput, match="H = 2160"):
        FRAMES.fixed({"H": 2160, "B": 3})
    assert specs()["encoder"].fixed({"T": 5}).buckets == ()


def test_what_a_spec_does_not_say_is_not_in_its_json() -> None:
    """Else the versions of all older artifacts would change."""
    adapter = TypeAdapter(GraphSpec)
    assert not {"buckets", "precision"} & set(adapter.dump_python(specs()["encoder"], mode="json"))
    said = adapter.dump_json(FRAMES)
    assert adapter.validate_json(said) == FRAMES
    assert b"buckets" in said
