"""Tuning: what costs less is chosen, a seed fixes it, and the version says what it was."""

import io
from pathlib import Path

import pytest

from deployments import candidates
from deployments.progress import LineReporter
from features.settings import Settings
from serve.artifacts import read_champion
from serve.watchtower.settings import DEFAULTS, DetectorSettings
from tests.training.detectors.scripted import LARGE, SMALL, ScriptedDay, scripted_days
from training.detectors import train
from training.detectors.days import MISSED_S, Found, replay
from training.detectors.train import changed, train_detectors, tune

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer changes than are tried in earnest."""
    steps = {"evidence": (0.875,), "least_bad": (1.5,), "confirmed_after": (0.5, 1.5), "least_hurt": (1.6,)}
    monkeypatch.setattr(train, "STEPS", steps)


@pytest.mark.usefixtures("few_steps")
def test_settings_that_cost_less_are_found_and_a_seed_fixes_them(tmp_path: Path) -> None:
    days = scripted_days()[:2]
    told: list[tuple[str, int, int]] = []
    first = train_detectors(tmp_path, days, 3, lambda stage, done, total, *_: told.append((stage, done, total)))
    metrics = first.manifest.metrics
    assert metrics["cost_s"] < metrics["start"]["cost_s"]  # type: ignore[index,operator,call-overload]
    assert DetectorSettings.of(first).confirmed_after == 3, "flickers are over before"
    assert ("changes", 2, 2) in told
    again = train_detectors(tmp_path / "again", days, 3)
    assert again.version == first.version
    warm = tune(days, DetectorSettings.of(first), 3)
    assert sum(score.cost_s for score in warm.scores) <= sum(score.cost_s for score in warm.before)
    assert warm.before == replay_alone(first, days), "beside each other, settings call what they call alone"


def replay_alone(artifact: object, days: list[ScriptedDay]) -> list[object]:
    return [replay(day, [DetectorSettings.of(artifact)])[0] for day in days]  # type: ignore[arg-type]


def test_where_nothing_is_better_the_start_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    day = ScriptedDay(5, (LARGE, SMALL))
    monkeypatch.setattr(train, "STEPS", {"confirmed_after": (1.5,), "least_hurt": (3.0,)})
    assert tune([day], DEFAULTS, 0).settings == DEFAULTS


def test_changes_stay_within_ranges_and_fit_together() -> None:
    assert changed(DEFAULTS, {"evidence": 9.0}) == DEFAULTS.model_copy(update={"evidence": 14.0})
    assert changed(DEFAULTS, {"confirmed_after": 0.1}) == DEFAULTS.model_copy(update={"confirmed_after": 1})
    assert changed(DEFAULTS, {"evidence": 0.8, "lasting_evidence": 1.5}) is None, "7.5 is above 6.4"


def test_what_an_incident_costs() -> None:
    def cost(**fields: object) -> float:
        return Found(incident_id="i", kind="k", counts=True, **fields).cost_s  # type: ignore[arg-type]

    assert cost() == MISSED_S
    assert cost(suspected_s=20.0, confirmed_s=40.0, first=True) == 30.0
    assert cost(suspected_s=20.0, confirmed_s=40.0) == 150.0
    assert cost(suspected_s=7200.0, confirmed_s=7200.0) == MISSED_S


@pytest.mark.usefixtures("few_steps")
def test_the_first_version_is_champion_and_later_ones_are_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def evenings(seed: int, cache: Path, told: object, count: int = 5) -> list[ScriptedDay]:
        assert cache == settings.home / "cache" / "detectors"
        asked.append((seed, count))
        return scripted_days()[:1]

    monkeypatch.setattr(candidates, "training_evenings", evenings)
    settings = Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0", feast_registry=str(tmp_path / "registry.db"))
    reporter = LineReporter(io.StringIO())
    first, published = candidates.train_and_settle("detectors", settings, reporter, seed=1, evenings=2, tracked=False)
    assert published
    second, published = candidates.train_and_settle("detectors", settings, reporter, seed=1, warm=True, tracked=False)
    assert not published
    assert asked == [(1, 2), (1, 5)]
    lineage = second.manifest.lineage
    assert lineage is not None
    assert lineage.parent == first.version
    assert read_champion(settings.models, "detectors") == first.path
