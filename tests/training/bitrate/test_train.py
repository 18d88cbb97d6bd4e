"""The fit: a seed is a policy, a killed run ends where an unbroken one does, and a little of it helps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.training.bitrate.conftest import SHORT_TITLES
from training.bitrate.model import BitratePolicy
from training.bitrate.pipeline import Greedy, relative_qoe
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.rollouts import PlaySettings
from training.bitrate.simulator import Sessions
from training.bitrate.synthetic import FAMILIES, generate_traces
from training.bitrate.train import FitSettings, fit

SHORT = FitSettings(
    rounds=4, predictor_rounds=2, play=PlaySettings(steps=8), parts=2, checkpoint_rounds=1, validation_rounds=1
)


def worlds(seed: int) -> Sequence[Sessions]:
    return [Sessions(generate_traces(8, seed=seed), SHORT_TITLES, [LINEAR, PERCEPTUAL], batch=16, seed=seed)]


def weights(policy: BitratePolicy) -> torch.Tensor:
    return torch.cat([value.flatten() for value in policy.state_dict().values()])


def fitted(settings: FitSettings = SHORT, seed: int = 0, **options: object) -> torch.Tensor:
    torch.manual_seed(seed)
    policy = BitratePolicy()
    fit(policy, worlds, settings, seed=seed, **options)  # type: ignore[arg-type]
    return weights(policy)


def test_a_seed_gives_the_same_policy_and_another_seed_another() -> None:
    first = fitted()
    assert torch.equal(first, fitted())
    assert not torch.allclose(first, fitted(seed=1))


class Killed(Exception):
    pass


def first_weight(policy: BitratePolicy) -> float:
    return float(weights(policy)[0])


@pytest.mark.parametrize("validate", [None, first_weight])
def test_a_killed_run_ends_where_an_unbroken_one_does(
    tmp_path: Path, validate: Callable[[BitratePolicy], float] | None
) -> None:
    rounds: list[str] = []

    def kill(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "policy" and len(rounds) == 1:
            raise Killed
        rounds.extend([note] if stage == "policy" else [])

    whole = fitted(validate=validate)
    with pytest.raises(Killed):
        fitted(checkpoint=tmp_path / "run.pt", progress=kill, validate=validate)
    played: list[str] = []
    resumed = fitted(checkpoint=tmp_path / "run.pt", progress=lambda stage, *_: played.append(stage), validate=validate)
    assert torch.equal(resumed, whole)
    assert played == ["policy"] * 2


@pytest.mark.parametrize(("sign", "expected"), [(-1, 1), (1, 4)])
def test_the_weights_of_the_best_figure_are_taken(sign: int, expected: int) -> None:
    seen: list[torch.Tensor] = []

    def validate(policy: BitratePolicy) -> float:
        seen.append(weights(policy))
        return float(sign * len(seen))

    torch.manual_seed(0)
    policy = BitratePolicy()
    assert fit(policy, worlds, SHORT, seed=0, validate=validate) == expected
    assert len(seen) == SHORT.rounds
    assert torch.equal(weights(policy), seen[expected - 1])


def test_a_state_of_another_run_or_a_damaged_one_is_left_alone(tmp_path: Path) -> None:
    state = tmp_path / "run.pt"
    whole = fitted()
    fitted(seed=1, checkpoint=state)
    assert torch.equal(fitted(checkpoint=state), whole)
    state.write_bytes(b"no state")
    assert torch.equal(fitted(checkpoint=state), whole)


def test_a_budget_ends_the_fit() -> None:
    torch.manual_seed(0)
    settings = FitSettings(rounds=10_000, predictor_rounds=1, play=PlaySettings(steps=4), parts=1)
    assert 1 <= fit(BitratePolicy(), worlds, settings, seed=0, budget_s=0.5) < 1000


def test_a_resumed_run_does_not_get_its_budget_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = FitSettings(rounds=10_000, predictor_rounds=1, play=PlaySettings(steps=4), parts=1, checkpoint_rounds=1)
    state = tmp_path / "run.pt"
    played = [fit(BitratePolicy(), worlds, settings, seed=0, budget_s=0.5, checkpoint=state) for _ in range(2)]
    assert played[1] <= played[0] + 1


def test_a_little_training_is_better_than_none() -> None:
    slow = [family for family in FAMILIES if family.name == "3g"]

    def world(seed: int, batch: int = 128) -> Sequence[Sessions]:
        return [Sessions(generate_traces(64, seed=seed, families=slow), SHORT_TITLES, batch=batch, seed=seed)]

    torch.manual_seed(0)
    policy = BitratePolicy()
    sessions = [world(99, 256)[0] for _ in range(2)]
    before = relative_qoe(Greedy(policy), sessions[0]).mean()
    fit(policy, world, FitSettings(rounds=10, predictor_rounds=4, play=PlaySettings(steps=24), parts=4), seed=0)
    after = relative_qoe(Greedy(policy), sessions[1]).mean()
    assert after > before + 0.05
