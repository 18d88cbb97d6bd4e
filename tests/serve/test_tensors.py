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
