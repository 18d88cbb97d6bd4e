"""The encoder and the title table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.titles import CONTENT_SIZE
from training.recommend.model import TIME_KNOTS, EncoderConfig, Retrieval, time_basis

V = 20


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    content = torch.randn(V + 1, CONTENT_SIZE)
    built = Retrieval(EncoderConfig(vocabulary=V, length=12, width=16), content).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # so that no bias is still zero
    return built


def history(batch, time, seed=0):
    generator = torch.Generator().manual_seed(seed)
    titles = torch.randint(1, V + 1, (batch, time), generator=generator)
    actions = torch.randint(1, 16, (batch, time), generator=generator)
    times = 1_700_000_000 + torch.randint(0, 100_000, (batch, time), generator=generator).cumsum(dim=1)
    return titles, actions, times


def padded(arrays, by):
    return tuple(torch.nn.functional.pad(array, (0, by)) for array in arrays)


@torch.no_grad()
def state(model, arrays):
    return model.encoder(*arrays, model.title_vectors())


@pytest.mark.parametrize("by", [1, 5])
@pytest.mark.parametrize("time", [1, 6])
def test_padding_changes_nothing(model, time, by):
    arrays = history(3, time)
    torch.testing.assert_close(state(model, padded(arrays, by)), state(model, arrays), rtol=0, atol=1e-5)


def test_the_batch_changes_nothing(model):
    arrays = history(4, 7)
    together = state(model, arrays)
    for place in range(4):
        alone = state(model, tuple(array[place : place + 1] for array in arrays))
        torch.testing.assert_close(together[place : place + 1], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_prefix_does_not_see_what_follows(model):
    arrays = history(2, 8)
    states = model.states(*arrays, model.title_vectors())
    for seen in range(1, 8):
        torch.testing.assert_close(
            states[:, seen], state(model, tuple(array[:, :seen] for array in arrays)), rtol=0, atol=1e-5
        )


def test_an_empty_history_has_a_state(model):
    empty = tuple(torch.zeros(2, 3, dtype=torch.int64) for _ in range(3))
    assert torch.isfinite(state(model, empty)).all()


def test_times_actions_and_order_count(model):
    titles, actions, times = history(1, 6)
    base = state(model, (titles, actions, times))
    assert not torch.allclose(base, state(model, (titles, actions, times[:, :1] + 30 * (times - times[:, :1]))))
    assert not torch.allclose(base, state(model, (titles, actions ^ 4, times)))
    assert not torch.allclose(base, state(model, (titles.flip(1), actions, times)))


def test_only_differences_of_times_count(model):
    titles, actions, times = history(2, 6)
    torch.testing.assert_close(
        state(model, (titles, actions, times)), state(model, (titles, actions, times + 86_400_000)), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_a_title_without_an_id_is_told_by_its_content(model):
    content = torch.zeros(3, CONTENT_SIZE)
    content[1, 0] = 1
    vectors = model.titles(content, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(-5, 2**40))
def test_the_time_basis_is_a_partition(seconds):
    basis = time_basis(torch.tensor([seconds]))
    assert basis.shape == (1, TIME_KNOTS)
    assert float(basis.min()) >= 0
    assert float(basis.sum()) == pytest.approx(1, abs=1e-5)
    assert int((basis > 0).sum()) <= 2
