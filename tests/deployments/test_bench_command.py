"""The benchmark's command line."""

import pytest

from deployments import bench
from features.errors import StoreUnavailable
from serve.errors import Unavailable


@pytest.mark.parametrize("kind", [StoreUnavailable, Unavailable])
def test_what_cannot_be_measured_is_told_without_a_traceback(kind, tmp_path, monkeypatch, capsys):
    def run(*_, **__):
        raise kind(field="online store", got="nothing", expected="an answer", next_step="Start the store.")

    monkeypatch.setenv("PLAYHEAD_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    assert bench.main([]) == 1
    assert "Start the store." in capsys.readouterr().err
