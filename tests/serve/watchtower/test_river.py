"""River's own estimator checks, over detectors that are fed what they read."""

import random

import pytest
from river import checks

from serve.watchtower.counts import CountDetector, RatioDetector
from serve.watchtower.series import SeriesDetector

DETECTORS = (SeriesDetector(), RatioDetector(), CountDetector())
WITHOUT = {"check_roc_auc"}  # it asks for scikit-learn; `test_they_rank_anomalies_first` asks the same without


class Stream:
    """Windows with all that the detectors read and two features that they don't; every 50th is an anomaly."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self):
        source = random.Random(3)
        for row in range(self.rows):
            wild = row % 50 == 49
            yield (
                {
                    "timestamp": 1_400_000_000.0 + 300 * row,
                    "value": source.gauss(0, 1) + 20 * wild,
                    "total": 200,
                    "bad": sum(source.random() < (0.4 if wild else 0.02) for _ in range(200)),
                    "count": int(source.gauss(100, 10)) + 200 * wild,
                    "region": "se",
                    "rung": source.randrange(5),
                },
                wild,
            )


@pytest.fixture
def fed(monkeypatch):
    monkeypatch.setattr(checks, "_yield_datasets", lambda model, scale=1: iter([list(Stream(300 * scale))]))


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda one: type(one).__name__)
def test_rivers_checks(detector, fed):
    done = 0
    for check in checks.yield_checks(detector):
        if check.__name__ not in WITHOUT:
            check(detector.clone())
            done += 1
    assert done > 15


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda one: type(one).__name__)
def test_they_rank_anomalies_first(detector):
    """Area under the ROC curve: how often an anomaly scores above a normal window."""
    one = detector.clone({"hold": 0}) if isinstance(detector, SeriesDetector) else detector.clone()
    scores = []
    for x, wild in Stream(1500):
        scores.append((one.score_one(x), wild))
        one.learn_one(x)
    judged = scores[300:]
    wilds = [score for score, wild in judged if wild]
    calm = [score for score, wild in judged if not wild]
    above = sum((a > b) + 0.5 * (a == b) for a in wilds for b in calm)
    assert above / (len(wilds) * len(calm)) > 0.99
