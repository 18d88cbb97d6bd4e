"""Simulated audiences: a change of taste is noticed within minutes, and a day like any other is quiet."""

from training.watchtower.drifting import evaluate


def test_a_change_is_noticed_and_steady_hours_are_quiet():
    seen = []
    report = evaluate(seed=3, days=0.25, shifts=1, changes=["taste"], progress=lambda *told: seen.append(told))
    assert report["false_alarms_per_day"] == 0
    assert 11.9 < report["false_alarms_per_day_upper_95"] < 12.1, "a quarter of a day tells little"
    taste = report["delays"]["taste"]
    assert (taste["noticed"], list(taste["by"])) == (1.0, ["genre"])
    assert taste["median_s"] <= 600
    assert seen[-1][1:] == (1, 1)
