"""What every engine must do. A test of an engine inherits EngineContract and names its device."""

import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from serve.artifacts import Artifact, Manifest
from serve.engines import Device, Engine, load_engine
from serve.engines.parity import differences
from serve.errors import ArtifactError, InvalidInput
from serve.tensors import ABSENT_SCORE, Array
from tests.contracts.small_model import MAX_B, MAX_N, MAX_T, D, K, example, resealed_artifact, small_artifact

GRAPHS = ("titles", "encoder", "ranker")


@functools.cache
def reference(graph: str) -> Engine:
    return load_engine(small_artifact(), graph, "torch")


def close(engine: Engine, expected: dict[str, Array], actual: dict[str, Array]) -> None:
    errors = differences(engine.spec, expected, actual)
    assert all(error <= engine.spec.tolerance for error in errors.values()), errors


BATCHED = ("titles", "actions", "times", "state", "eligible", "context")


class EngineContract:
    device: ClassVar[Device]

    @classmethod
    def artifact(cls) -> Artifact:
        """The small model, with what this engine needs."""
        return small_artifact()

    @classmethod
    @functools.cache
    def engine(cls, graph: str) -> Engine:
        return load_engine(cls.artifact(), graph, cls.device)

    @pytest.mark.parametrize("graph", GRAPHS)
    @pytest.mark.parametrize(
        "sizes",
        [
            {"batch": 1, "time": 1, "titles": K + 1},
            {"batch": 1, "time": MAX_T, "titles": 50},
            {"batch": MAX_B, "time": 5, "titles": 400},
            {"batch": 2, "time": 9, "titles": MAX_N},
        ],
        ids=str,
    )
    def test_agrees_with_torch(self, graph: str, sizes: dict[str, int]) -> None:
        inputs = example(graph, seed=1, **sizes)
        close(self.engine(graph), reference(graph)(inputs), self.engine(graph)(inputs))

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("graph", ["encoder", "ranker"])
    def test_a_row_does_not_depend_on_its_batch(self, graph: str, seed: int) -> None:
        engine = self.engine(graph)
        batch, time, titles = np.random.default_rng(seed).integers([2, 1, K + 1], [MAX_B, MAX_T, 90], endpoint=True)
        inputs = example(graph, batch=batch, time=time, titles=titles, seed=seed)
        together = engine(inputs)
        for row in range(batch):
            alone = engine({name: array[row : row + 1] if name in BATCHED else array for name, array in inputs.items()})
            close(engine, alone, {name: array[row : row + 1] for name, array in together.items()})

    @pytest.mark.parametrize("seed", range(8))
    def test_zeros_at_the_end_of_time_change_nothing(self, seed: int) -> None:
        engine = self.engine("encoder")
        time = int(np.random.default_rng(seed).integers(1, MAX_T))
        inputs = example("encoder", time=time, seed=seed)
        for length in range(time + 1, MAX_T + 1):
            padded = {
                name: array if name == "table" else np.pad(array, ((0, 0), (0, length - time)))
                for name, array in inputs.items()
            }
            close(engine, engine(inputs), engine(padded))

    def test_an_empty_history_has_a_state(self) -> None:
        inputs = example("encoder", time=3)
        for name in ("titles", "actions", "times"):
            inputs[name][1] = 0
        state = self.engine("encoder")(inputs)["state"]
        assert np.isfinite(state).all()

    def test_what_is_not_eligible_is_no_candidate(self) -> None:
        inputs = example("ranker", batch=2)
        inputs["eligible"][:] = False
        inputs["eligible"][0, [3, 5, 8]] = True
        outputs = self.engine("ranker")(inputs)
        assert set(outputs["candidates"][0][outputs["score"][0] > ABSENT_SCORE]) == {3, 5, 8}
        assert (outputs["score"][0, 3:] <= ABSENT_SCORE).all()
        assert (outputs["score"][1] <= ABSENT_SCORE).all()

    @pytest.mark.parametrize(
        ("graph", "name", "value", "got", "expected"),
        [
            ("encoder", "titles", None, "nothing", "int64 (B, T)"),
            ("encoder", "extra", np.zeros(1, np.float32), "unknown", "one of"),
            ("encoder", "titles", [[1, 2]], "list", "numpy"),
            ("encoder", "titles", np.ones((3, 7), np.int32), "int32", "int64"),
            ("encoder", "titles", np.ones((3, 7), ">i8"), ">i8", "int64"),
            ("encoder", "titles", np.ones(7, np.int64), "(7,)", "(B, T)"),
            ("encoder", "titles", np.ones((3, 6), np.int64), "T = ", "T = "),
            ("encoder", "titles", np.ones((0, 7), np.int64), "B = 0", "1 to 16"),
            ("encoder", "titles", np.ones((MAX_B + 1, 7), np.int64), "B = 17", "1 to 16"),
            ("encoder", "table", np.zeros((50, D + 1), np.float32), "(50, 17)", "(N, 16)"),
            ("encoder", "table", np.zeros((K, D), np.float32), "N = 20", "21 to 3000"),
            ("encoder", "titles", np.full((3, 7), 50), "50 at [0, 0]", "0 to 49"),
            ("encoder", "titles", np.full((3, 7), -1), "-1 at [0, 0]", "0 to 49"),
            ("encoder", "actions", np.full((3, 7), 256), "256", "0 to 255"),
            ("encoder", "table", np.full((50, D), np.nan, np.float32), "nan at [0, 0]", "finite"),
            ("encoder", "table", np.full((50, D), np.inf, np.float32), "inf", "finite"),
            ("ranker", "context", np.array([[0, 0], [0, np.nan], [0, 0]], np.float32), "nan at [1, 1]", "-10 to 10"),
            ("ranker", "context", np.full((3, 2), -np.inf, np.float32), "-inf", "finite"),
            ("ranker", "context", np.full((3, 2), 11, np.float32), "11", "-10 to 10"),
            ("ranker", "title_stats", np.full((50, 3), -1, np.float32), "-1", "0 to"),
            ("ranker", "title_stats", np.zeros((51, 3), np.float32), "N = 51", "N = 50"),
            ("ranker", "eligible", np.ones((3, 50), np.int8), "int8", "bool"),
        ],
    )
    def test_refuses_by_name(self, graph: str, name: str, value: Any, got: str, expected: str) -> None:
        inputs: dict[str, Any] = example(graph)
        if value is None:
            del inputs[name]
        else:
            inputs[name] = value
        with pytest.raises(InvalidInput) as caught:
            self.engine(graph)(inputs)
        # Where two inputs disagree on a size, the later one of the spec is named.
        assert caught.value.field.startswith(f"{graph}.")
        if "T = " not in got:
            assert caught.value.field == f"{graph}.{name}"
        assert got in caught.value.got
        assert expected in caught.value.expected

    def test_takes_strided_and_read_only_arrays(self) -> None:
        engine = self.engine("encoder")
        inputs = example("encoder")
        expected = engine(inputs)
        strided = {name: np.asfortranarray(array) for name, array in inputs.items()}
        close(engine, expected, engine(strided))
        for array in inputs.values():
            array.flags.writeable = False
        close(engine, expected, engine(inputs))

    @pytest.mark.parametrize("graph", GRAPHS)
    def test_leaves_inputs_alone_and_gives_outputs_away(self, graph: str) -> None:
        engine = self.engine(graph)
        inputs = example(graph)
        before = {name: array.copy() for name, array in inputs.items()}
        first = engine(inputs)
        kept = {name: array.copy() for name, array in first.items()}
        second = engine(example(graph, seed=7))
        for array in second.values():
            assert array.flags.writeable
            array[...] = 0
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, before[name])

    def test_many_threads_get_their_own_answers(self) -> None:
        engine = self.engine("encoder")
        jobs = [example("encoder", batch=1 + seed % 4, time=1 + seed % 9, seed=seed) for seed in range(40)]
        expected = [engine(job) for job in jobs]
        start = threading.Barrier(4)

        def work(offset: int) -> None:
            start.wait(timeout=10)
            for place in (*range(offset, len(jobs)), *range(offset)):
                close(engine, expected[place], engine(jobs[place]))

        with ThreadPoolExecutor(4) as pool:
            for job in [pool.submit(work, offset) for offset in (0, 10, 20, 30)]:
                job.result(timeout=60)

    @pytest.mark.parametrize("graph", ["encoder", "ranker"])
    def test_a_sibling_answers_alike_and_binds_for_itself(self, graph: str) -> None:
        engine, inputs = self.engine(graph), example(graph, batch=2, time=9, titles=60, seed=3)
        sibling = engine.sibling()
        close(engine, engine(inputs), sibling(inputs))
        table = inputs.pop("table")
        bound = sibling.bind({"table": table})
        close(engine, engine({**inputs, "table": table}), bound(inputs))
        assert not engine.bound
        assert (sibling.version, sibling.graph, sibling.device) == (engine.version, engine.graph, engine.device)

    def test_bound_inputs_stay_and_are_left_out_of_calls(self) -> None:
        engine = self.engine("ranker")
        inputs = example("ranker")
        expected = engine(inputs)
        fixed = {name: inputs.pop(name) for name in ("table", "title_stats")}
        bound = engine.bind({name: array.copy() for name, array in fixed.items()})
        assert bound.bound == {"table", "title_stats"}
        close(engine, expected, bound(inputs))
        with pytest.raises(InvalidInput, match=r"ranker\.table.*bound already"):
            bound({**inputs, "table": fixed["table"]})
        with pytest.raises(InvalidInput, match=r"ranker\.table.*nothing"):
            engine(inputs)
        with pytest.raises(InvalidInput, match=r"ranker\.eligible.*N = 49"):
            bound({**inputs, "eligible": inputs["eligible"][:, :49]})

    def test_binding_copies_and_leaves_the_engine_as_it_was(self) -> None:
        engine = self.engine("encoder")
        old, new = example("encoder", seed=1), example("encoder", seed=2, titles=80)
        table = old["table"].copy()
        bound = engine.bind({"table": table})
        table[:] = math.nan  # the engine has its own copy
        rebound = bound.bind({"table": new["table"]})  # another N: nothing else fixes it
        history = {name: array for name, array in old.items() if name != "table"}
        for view, expected in (
            (bound, engine(old)),
            (rebound, engine({**old, "table": new["table"]})),
            (bound, engine(old)),  # the request that rebound used has its table no longer
        ):
            close(engine, expected, view(history))
        assert engine.bound == frozenset()

    @pytest.mark.parametrize(
        ("name", "value", "got"),
        [
            ("table", np.full((50, D), np.nan, np.float32), "nan"),
            ("table", np.zeros((50, D), np.float64), "float64"),
            ("tabel", np.zeros((50, D), np.float32), "unknown"),
        ],
    )
    def test_binding_refuses_by_name(self, name: str, value: Array, got: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            self.engine("encoder").bind({name: value})
        assert caught.value.field == f"encoder.{name}"
        assert got in caught.value.got

    def test_bound_inputs_must_agree_with_each_other(self) -> None:
        inputs = example("ranker")
        bound = self.engine("ranker").bind({"table": inputs["table"]})
        with pytest.raises(InvalidInput, match=r"ranker\.title_stats.*N = 49"):
            bound.bind({"title_stats": inputs["title_stats"][:49]})
        with pytest.raises(InvalidInput, match=r"encoder\.titles.*50 at"):
            self.engine("encoder").bind({"table": inputs["table"]})(
                {**{name: array for name, array in example("encoder").items() if name != "table"},
                 "titles": np.full((3, 7), 50)}
            )  # fmt: skip

    @pytest.mark.parametrize("graph", GRAPHS)
    def test_warm_up_compares_with_torch(self, graph: str) -> None:
        errors = self.engine(graph).warm_up(self.artifact(), batches=(1, 4, 10_000))
        assert set(errors) == {tensor.name for tensor in self.engine(graph).spec.outputs}
        assert max(errors.values()) <= 1e-4

    def test_an_engine_that_is_not_torch_is_refused(self, tmp_path: Path) -> None:
        artifact = self.artifact_with_example(tmp_path, "out.state", lambda state: state + np.float32(0.01))
        with pytest.raises(ArtifactError, match=r"encoder\.state on .*against torch"):
            load_engine(artifact, "encoder", self.device)

    @classmethod
    def artifact_with_example(cls, folder: Path, name: str, change: Any) -> Artifact:
        """The small model with one changed array in the encoder's example."""

        def rewrite(path: Path, manifest: Manifest) -> Manifest:
            with np.load(path / "encoder.example.npz") as arrays:
                content = dict(arrays)
            np.savez(path / "encoder.example.npz", **{**content, name: change(content[name])})
            return manifest

        return resealed_artifact(cls.artifact(), folder, rewrite)

    def test_an_unknown_graph_is_refused(self) -> None:
        with pytest.raises(ArtifactError, match=r"graphs\.decoder.*encoder"):
            load_engine(self.artifact(), "decoder", self.device)
