"""What a policy sees: shapes and order of the graph's inputs."""

from dataclasses import fields

import numpy as np

from serve.bitrate.observations import SHAPES, Observations


def test_fields_are_the_inputs_in_order() -> None:
    assert [field.name for field in fields(Observations)] == list(SHAPES)
    for name, array in Observations.empty(3).as_inputs().items():
        assert array.shape == (3, *SHAPES[name])
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_nothing_is_fetched_yet_in_an_empty_one() -> None:
    seen = Observations.empty(2)
    assert (seen.last_rung == -1).all()
    assert not any(array.any() for name, array in seen.as_inputs().items() if name != "last_rung")


def test_sessions_are_taken_in_order_and_apart() -> None:
    seen = Observations.empty(4)
    seen.buffer_s[:] = range(4)
    taken = seen.take(np.array([3, 1]))
    assert len(taken) == 2
    assert taken.buffer_s.tolist() == [3, 1]
    taken.buffer_s[:] = 9
    assert seen.buffer_s.tolist() == [0, 1, 2, 3]
    assert seen.take(seen.buffer_s > 1).buffer_s.tolist() == [2, 3]
