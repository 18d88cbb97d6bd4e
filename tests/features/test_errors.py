"""Errors that callers are told about: their fields survive the way between processes."""

import pickle

import pytest

from deployments.state import StackError
from features.errors import ExplainedError, StoreTimeout
from serve.errors import InvalidInput


@pytest.mark.parametrize("kind", [StoreTimeout, InvalidInput, StackError])
def test_errors_cross_processes_whole(kind):
    error = kind(field="limit", got="x" * 3, expected="a number", next_step="Send one.")
    arrived = pickle.loads(pickle.dumps(error))
    assert isinstance(arrived, ExplainedError)
    assert type(arrived) is kind
    assert vars(arrived) == vars(error)
    assert str(arrived) == str(error)
