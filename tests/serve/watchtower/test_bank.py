"""The bank judges as its detectors do one by one, is quick, and survives being written down."""

import numpy as np
import pytest

from serve.errors import InvalidInput
from serve.watchtower.bank import RatioBank
from serve.watchtower.counts import RatioDetector

WINDOWS = 900


def streams(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bad and total of `count` series of every size, with gaps, bursts, lasting shifts and more spread than chance."""
    random = np.random.default_rng(3)
    sizes = random.choice([1, 4, 30, 400, 5000], count)
    shares = random.choice([0.001, 0.01, 0.1], count)
    total = random.poisson(sizes, (WINDOWS, count))
    total[random.random((WINDOWS, count)) < 0.05] = 0
    share = shares * np.exp(random.normal(0, 0.2, (WINDOWS, count)))
    share[300:310, ::3] = 0.5
    share[500:, 1::3] = np.minimum(5 * shares[1::3], 0.6)
    return random.binomial(total, np.clip(share, 0, 1)), total


def test_bank_judges_as_its_detectors_do() -> None:
    bad, total = streams(24)
    settings = {"half_life": 120, "warm_up": 40, "adopt_after": 60}
    bank = RatioBank(**settings)
    bank.grow(24)
    detectors = [RatioDetector(**settings) for _ in range(24)]
    alarms = 0
    for window in range(WINDOWS):
        rows = np.flatnonzero(total[window])
        found = bank.see(rows, bad[window, rows].astype(float), total[window, rows].astype(float))
        for row, p_value in zip(rows.tolist(), found.tolist(), strict=True):
            counts = {"bad": int(bad[window, row]), "total": int(total[window, row])}
            expected = detectors[row].p_value(counts)
            assert p_value == pytest.approx(expected, rel=1e-6) if p_value < 1 else expected > 1e-3, (window, row)
            detectors[row].learn_one(counts)
            alarms += p_value < 1e-6
        assert bank.shares(rows) == pytest.approx([detectors[row].share for row in rows.tolist()])
    assert alarms > 50


def test_state_goes_on_where_it_was() -> None:
    bad, total = streams(100)
    bank = RatioBank(half_life=120, warm_up=40, adopt_after=60)
    for window in range(WINDOWS):
        rows = np.flatnonzero(total[window, : 50 if window < 200 else 100])
        bank.grow(int(rows.max()) + 1)
        counts = bad[window, rows].astype(float), total[window, rows].astype(float)
        if window == 600:
            bank, whole = RatioBank.load(bank.dump()), bank
            assert whole.see(rows, *counts).tolist() == bank.see(rows, *counts).tolist()
        else:
            found = bank.see(rows, *counts)
            if window > 600:
                assert whole.see(rows, *counts).tolist() == found.tolist()


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b"no arrays", lambda b: b""])
def test_damaged_state_is_refused(damage: object) -> None:
    bank = RatioBank()
    bank.grow(3)
    with pytest.raises(InvalidInput):
        RatioBank.load(damage(bank.dump()))  # type: ignore[operator]
