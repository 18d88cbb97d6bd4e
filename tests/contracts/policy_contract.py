"""What every bitrate policy must do, as the engine that serves it runs it. A test inherits it and gives an artifact."""

import functools
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest

from serve.artifacts import Artifact, read_artifact
from serve.bitrate.observations import PERCEPTUAL_WEIGHTS, RUNGS, SHAPES, Observations
from serve.engines import Engine, load_engine
from serve.tensors import Array
from training.bitrate.export import GRAPH, example_observations


def ladder(rungs: int, batch: int = 1, history: int = 3) -> Observations:
    """A plain title of `rungs` rungs from 300 kbit/s upwards, 2 Mbit/s measured `history` times."""
    seen = Observations.empty(batch)
    seen.segment_s[:], seen.max_buffer_s[:], seen.buffer_s[:], seen.remaining[:] = 4, 60, 12, 40
    seen.rungs_kbps[:, :rungs] = 300 * 1.5 ** np.arange(rungs)
    seen.segment_bytes[:] = seen.rungs_kbps[:, None] * 4 * 125
    seen.quality[:] = seen.rungs_kbps[:, None] / 1000
    seen.weights[:] = (-4.3, -1, -1, 1)
    if history:
        seen.throughput_kbps[:, -history:], seen.download_s[:, -history:] = 2000, 0.6
        seen.last_rung[:], seen.last_quality[:] = 0, 0.3
    return seen


@functools.cache
def _engine(path: Path) -> Engine:
    return load_engine(read_artifact(path), GRAPH, "cpu", batches=())


class PolicyContract(ABC):
    """Inherit it, and say which artifact."""

    @abstractmethod
    def artifact(self) -> Artifact:
        """The policy's artifact."""

    def decide(self, seen: Observations) -> dict[str, Array]:
        return _engine(self.artifact().path)(seen.as_inputs())

    def check(self, seen: Observations) -> dict[str, Array]:
        """Outputs, once they are what they must be for any input."""
        outputs = self.decide(seen)
        exists = seen.rungs_kbps > 0
        scores, quantiles, probability = outputs.values()
        assert list(outputs) == ["scores", "throughput_quantiles_kbps", "rebuffer_probability"]
        assert all(np.isfinite(array).all() for array in outputs.values())
        assert (scores[~exists] == -1e9).all()
        assert (np.abs(scores[exists]) < 1e6).all()
        assert (quantiles > 0).all()
        assert (np.diff(quantiles, axis=1) >= 0).all()
        assert ((probability >= -1e-6) & (probability <= 1 + 1e-6)).all()
        return outputs

    def test_it_takes_observations_by_name(self) -> None:
        spec = self.artifact().manifest.graphs[GRAPH]
        assert {tensor.name: tensor.shape for tensor in spec.inputs} == {
            name: ("B", *shape) for name, shape in SHAPES.items()
        }

    @pytest.mark.parametrize("rungs", [1, 2, 3, 6, 11, RUNGS])
    @pytest.mark.parametrize("history", [0, 1, 12])
    def test_any_ladder_from_the_first_decision_on(self, rungs: int, history: int) -> None:
        outputs = self.check(ladder(rungs, history=history))
        assert outputs["scores"].argmax(1)[0] < rungs

    def test_a_session_does_not_depend_on_its_batch(self) -> None:
        seen = example_observations(24, 20)
        together = self.decide(seen)
        for place in (0, 7, 23):
            alone = self.decide(seen.take(slice(place, place + 1)))
            for name, array in alone.items():
                np.testing.assert_allclose(array[0], together[name][place], rtol=2e-3, atol=2e-4)

    @pytest.mark.parametrize("extreme", [0.0, 1e-30, 1e9, 3e38])
    @pytest.mark.parametrize("name", [name for name in SHAPES if name != "rungs_kbps"])
    def test_absurd_values_give_an_answer(self, name: str, extreme: float) -> None:
        for sign in (1, -1):
            seen = ladder(5, batch=2)
            getattr(seen, name)[0] = sign * extreme
            self.check(seen)

    def test_absurd_ladders_give_an_answer(self) -> None:
        seen = ladder(5, batch=3)
        seen.rungs_kbps[0, :5] = 1e30
        seen.rungs_kbps[1, :5] = 1e-30
        seen.rungs_kbps[2] = 0  # none at all
        self.check(seen)

    def test_rungs_of_the_same_size_and_quality_are_worth_the_same_risk(self) -> None:
        seen = ladder(6)
        for array in (seen.rungs_kbps, seen.segment_bytes, seen.quality):
            array[..., 3] = array[..., 2]
        probability = self.check(seen)["rebuffer_probability"][0]
        assert probability[2] == pytest.approx(probability[3], abs=1e-5)

    def test_more_bytes_are_riskier(self) -> None:
        seen = ladder(12)
        seen.buffer_s[:] = 4
        probability = self.check(seen)["rebuffer_probability"][0]
        assert (np.diff(probability) >= -1e-5).all()
        assert probability[0] < 0.05
        assert probability[-1] > 0.95

    def test_it_takes_more_where_there_is_more(self) -> None:
        """The least that one expects, in both QoEs: the lowest rung on a starved path, a high one on a rich path."""
        for weights in ((-4.3, -1, -1, 1), PERCEPTUAL_WEIGHTS):
            seen = ladder(6, batch=2, history=12)
            seen.throughput_kbps[:] = np.array([[250], [40_000]])
            seen.download_s[:] = np.array([[4.8], [0.1]])
            seen.buffer_s[:] = (3, 50)
            seen.weights[:] = weights
            if weights[3] < 1:
                seen.quality[..., :6] = np.linspace(40, 98, 6)
                seen.last_quality[:] = 40
            starved, rich = self.check(seen)["scores"].argmax(1)
            assert starved == 0
            assert rich >= 3
