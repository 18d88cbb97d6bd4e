"""The demo of learning, shortened: drift, update, gate, rollout, promotion; then a poisoned version is rolled back."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deployments.demos.learning import LearningDemo, moves_of, run, viewers_of
from deployments.progress import TerminalReporter
from features.settings import Settings
from tests.conftest import free_port
from tests.serve.bitrate.small_policy import small_policy
from training.datasets.synthetic import prepare_synthetic


def test_tastes_come_from_plays_and_kids_stay_at_home(tmp_path: Path) -> None:
    dataset = prepare_synthetic(tmp_path / "audience", profiles=300, titles=120, events=6_000)
    viewers = viewers_of(dataset)
    kids = set(dataset.frame("profiles").filter("kids")["profile_id"].to_list())
    assert kids
    assert not kids & set(viewers.profiles)
    assert np.allclose(viewers.taste.sum(axis=1), 1.0)
    moves = moves_of(viewers, seed=0)
    moved = [viewers.genres[place] for place, to in enumerate(moves) if to != place]
    assert set(moved) == set(viewers.genres) - {"Animation", "Family"}
    assert not np.allclose(viewers.shifted(moves).taste, viewers.taste)


@pytest.mark.skipif(not os.environ.get("PLAYHEAD_TEST_DEMO"), reason="takes minutes: make test-demo")
@pytest.mark.timeout(1800)
def test_a_shift_of_taste_ends_in_a_better_champion_and_a_poisoned_one_is_rolled_back(tmp_path: Path) -> None:
    settings = Settings.from_env({"PLAYHEAD_HOME": str(tmp_path)})
    policy = small_policy()
    shutil.copytree(policy, settings.models / "bitrate" / policy.name)
    (settings.models / "bitrate" / "champion").write_text(f"{policy.name}\n", encoding="utf-8")
    demo = LearningDemo(  # as many viewers as the demo has: each counts once a stage
        home=tmp_path / "demo", port=free_port(), epochs=3, pages_per_s=80.0, warm_up_s=60.0, stage_s=10.0,
        first_share=0.5, learn_events=3_500, patience_s=420.0,
    )  # fmt: skip
    told: list[str] = []

    def tell(at_s: float, text: str) -> None:
        told.append(f"{at_s:+.0f} {text}")
        print(told[-1], flush=True)  # noqa: T201 - so that it is seen how far it came

    report = run(demo, settings, TerminalReporter(Console()), tell)
    story = "\n".join(told)
    steps = [report[name] for name in ("drift_s", "trained_s", "gate_s", "rollout_s", "promoted_s")]
    assert steps == sorted(steps), story
    assert report["failed"] == 0, f"{report['failures']}\n{story}"
    after = report["plays"]["after the promotion"]["retrained"]["plays"]
    assert after > report["plays"]["after the shift"]["first champion"]["plays"], story
    assert "is refused: 'no verdict'" in story or "is refused: no verdict" in story, story
    assert "rollback by playhead" in story
    page = Path(report["html"]).read_text(encoding="utf-8")
    for version in ("first champion", "retrained", "poisoned"):
        assert version in page
