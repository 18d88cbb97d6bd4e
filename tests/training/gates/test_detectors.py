"""The gate of the detectors' settings: poisoned ones are refused for the right reason, a copy is not better."""

from pathlib import Path
from typing import Any

import pytest

from serve.artifacts import Artifact, read_artifact
from serve.watchtower.settings import MODEL
from tests.serve.watchtower.settings_versions import settings_version
from tests.training.detectors.scripted import scripted_days
from training.gates.detectors import gate_detectors
from training.gates.report import write_report
from training.gates.verdict import Verdict

pytestmark = pytest.mark.timeout(600)  # four days are watched


def version(folder: Path, **changes: Any) -> Artifact:
    return read_artifact(folder / MODEL / settings_version(folder, **changes))


def asked(folder: Path, **changes: Any) -> Verdict:
    """The verdict on the defaults with some changes, against the defaults."""
    return gate_detectors(version(folder, **changes), version(folder), scripted_days())


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"least_excess": 50.0, "least_hurt": 100.0, "least_lift": 4.0, "least_bad": 50.0}, {"found"}),
        (
            {
                "evidence": 5.5, "lasting_evidence": 4.0, "least_bad": 2.0, "confirmed_after": 1, "least_hurt": 2.0,
                "least_excess": 2.0, "least_lift": 1.2,
            },
            {"false alarms"},
        ),
        ({"confirmed_after": 6}, {"promptness of confirmation"}),
    ],
    ids=["deaf", "trigger-happy", "slow"],
)  # fmt: skip
def test_poisoned_settings_are_refused_for_what_they_do(
    tmp_path: Path, changes: dict[str, Any], failed: set[str]
) -> None:
    verdict = asked(tmp_path, **changes)
    assert not verdict.passed
    assert not verdict.better
    names = {check.name.partition(":")[0] for check in verdict.failed}
    assert failed <= names
    others = {"found", "false alarms", "promptness of confirmation", "no change", "lineage", "served"} - failed
    allowed = {"promptness of confirmation"} if failed == {"found"} else set()  # what hears little hears late
    assert not names & (others - allowed)


def test_a_copy_is_no_change_and_not_better(tmp_path: Path) -> None:
    same = version(tmp_path)
    verdict = gate_detectors(same, same, scripted_days()[:2])
    assert {check.name for check in verdict.failed} == {"no change"}
    assert not verdict.better


def test_settings_that_call_the_same_are_no_change(tmp_path: Path) -> None:
    verdict = gate_detectors(version(tmp_path, suspicion_ends=19), version(tmp_path), scripted_days()[:2])
    assert {check.name for check in verdict.failed} == {"no change"}, "another version, and nothing is called otherwise"


def test_settings_that_cry_wolf_less_pass(tmp_path: Path) -> None:
    verdict = asked(tmp_path, confirmed_after=3)
    assert verdict.passed, [check.text for check in verdict.failed]
    cost = verdict.comparisons[0]
    assert (cost.measure, cost.difference.units) == ("cost", 4)
    assert cost.difference.value > 600
    assert verdict.better == (cost.difference.low > 0)
    assert verdict.facts["incidents"] == 24
    assert verdict.facts["candidate"]["false_alarms"] < verdict.facts["champion"]["false_alarms"]
    write_report(verdict, tmp_path / "report")
    assert "promptness of confirmation" in (tmp_path / "report" / "gate.html").read_text()


def test_what_serving_refuses_is_refused(tmp_path: Path) -> None:
    verdict = gate_detectors(version(tmp_path, evidence=99.0), version(tmp_path), scripted_days())
    assert {check.name for check in verdict.failed} == {"served"}


def test_few_incidents_say_nothing(tmp_path: Path) -> None:
    verdict = gate_detectors(version(tmp_path, evidence=9.0), version(tmp_path), scripted_days()[:1])
    assert "incidents" in {check.name for check in verdict.failed}
