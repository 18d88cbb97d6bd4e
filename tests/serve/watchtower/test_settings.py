"""The detectors' settings as a value: what fits, what does not, and what every sign must be kept for."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.artifacts import read_artifact
from serve.errors import ArtifactError
from serve.watchtower import board
from serve.watchtower.alarms import GAP, MISSING, Alarm
from serve.watchtower.settings import DEFAULTS, MODEL, SENSITIVE, DetectorSettings, bounds
from tests.serve.watchtower.settings_versions import settings_version


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"evidence": 15.0}, "settings.evidence"),
        ({"evidence": float("nan")}, "settings.evidence"),
        ({"least_hurt": "5"}, "settings.least_hurt"),
        ({"confirmed_after": 2.5}, "settings.confirmed_after"),
        ({"sensitivity": 1.0}, "settings.sensitivity"),
        ({"evidence": 6.0, "lasting_evidence": 7.0}, "lasting_evidence must not be above evidence"),
        ({"confirmed_after": 3, "confirmed_within": 2}, "confirmed_after"),
        ({"recovering_after": 30, "closed_after": 30}, "recovering_after"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ArtifactError, match=field) as found:
        DetectorSettings.read(DEFAULTS.model_dump() | changes)
    assert "stay in force" in found.value.next_step


def test_a_version_holds_settings_and_no_graph(tmp_path: Path) -> None:
    version = settings_version(tmp_path, evidence=9.0)
    artifact = read_artifact(tmp_path / MODEL / version)
    assert DetectorSettings.of(artifact) == DEFAULTS.model_copy(update={"evidence": 9.0})
    assert not artifact.manifest.files
    other = read_artifact(tmp_path / MODEL / settings_version(tmp_path, name="bitrate"))
    with pytest.raises(ArtifactError, match="the model detectors"):
        DetectorSettings.of(other)


SIGNS = st.builds(
    Alarm, slice=st.just((("cdn", "north"),)), metric=st.sampled_from(["stalls", MISSING, GAP]), window_ms=st.just(0),
    evidence=st.floats(0, 20), expected=st.floats(0, 0.2), total=st.floats(1, 1000), bad=st.floats(0, 100),
    windows=st.sampled_from([1, 12]), before=st.floats(0, 20), excess=st.floats(0, 100),
)  # fmt: skip


@given(
    sign=SIGNS, evidence=st.floats(*bounds("evidence")), lasting=st.floats(*bounds("lasting_evidence")),
    least_bad=st.floats(*bounds("least_bad")), slow=st.floats(*bounds("slow_evidence")),
    slow_bad=st.floats(*bounds("slow_least_bad")), lift=st.floats(*bounds("slow_lift")),
)  # fmt: skip
def test_no_settings_call_an_alarm_what_is_no_sign(
    sign: Alarm, evidence: float, lasting: float, least_bad: float, slow: float, slow_bad: float, lift: float
) -> None:
    settings = DetectorSettings(
        evidence=evidence, lasting_evidence=min(lasting, evidence), least_bad=least_bad, slow_evidence=slow,
        slow_least_bad=slow_bad, slow_lift=lift,
    )  # fmt: skip
    assert SENSITIVE.is_alarm(sign) or not settings.is_alarm(sign)


def test_what_a_release_before_told_are_alarms() -> None:
    old = [[["cdn", "a"]], "stalls", 5, 5.5, 0.1, 9.0, 2.0, 1]
    (sign,) = board.load_alarms(orjson.dumps([old]))
    assert DEFAULTS.is_alarm(sign), "evidence as the window before, and enough bad ones over some span"
    (again,) = board.load_alarms(board.dump_alarms([sign]))
    assert again == sign
