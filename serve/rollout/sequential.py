"""Tests that may be looked at every second: does the challenger's arm have more, or fewer, of some event?

An event (a play, an error, a slow answer) is the challenger's with probability p. If both arms' rates are alike, p is
the arm's share; if the challenger's is exp(delta) times the champion's, its odds are exp(delta) times the share's. The
likelihood ratio of such a p against the null's, averaged over a fixed grid of deltas, is at most 1 in the mean whenever
one looks, so the probability that it ever reaches 1 / alpha is at most alpha (Ville 1939). How many events there are,
and how that changes over the day, is conditioned away.

What must hold: given which events there are and whose the earlier ones were, an event is the challenger's with
probability p. An arm is drawn by a hash of profile and salt, so this is exact if a profile gives a test one event at
most and the share is the one that was drawn with, however events cluster. It isn't for a profile's second event, whose
arm is known from its first. With a window's own share of requests instead, of which many may have the event, the
challenger's are hypergeometric, less spread out than binomial (W. Hoeffding, JASA 58, 1963, section 6), and the test is
somewhat too careful.

Sources: M. Lindon and A. Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022 (mixtures of
multinomial likelihood ratios, counting processes, sample ratio mismatch); M. Lindon, C. Sanden and V. Shirikian, "Rapid
regression detection in software deployments through sequential testing", KDD 2022; J. Ville, "Etude critique de la
notion de collectif", 1939; the mixture is H. Robbins', "Statistical methods related to the law of the iterated
logarithm", Ann. Math. Stat. 41, 1970.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput
from serve.watchtower.state import checked, stamped

Direction = Literal["more", "fewer", "either"]

NEAREST: Final = 0.02
"""|delta| beyond the null's from which on there are alternatives: effects below 2 % are nobody's business."""
MOST_LOG: Final = 700.0
"""Of an e-value as a number: JSON has no infinity."""

_KIND: Final = "count-test"
_VERSION: Final = 1
_SIDE: Final = 80
_FARTHEST: Final = math.log(50.0)
_FINE: Final = 0.1
"""Deltas are about this much finer near 0 than evenly spaced ones: steps of 0.005 there, 0.2 at the ends."""
_CURVED: Final = np.linspace(-math.asinh(_FARTHEST / _FINE), math.asinh(_FARTHEST / _FINE), 2 * _SIDE + 1)

DELTAS: Final[NDArray[np.float64]] = _FINE * np.sinh(_CURVED)
"""Logarithms of rate ratios, from 1 / 50 to 50, (161,), rising."""


def evidence_text(e_value: float) -> str:
    """An e-value, or one that is needed, for people: 4.86, 1,023, 3.2e+12."""
    return f"{e_value:,.0f}" if 100.0 <= e_value < 1e6 else f"{e_value:.3g}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """The challenger's rate over the champion's.

    Attributes:
        estimate: the likeliest, of a grid; None before the first event.
        low: lower bound; 0 where nothing bounds it.
        high: upper bound; None where nothing bounds it.
    """

    estimate: float | None
    low: float
    high: float | None


class CountTest:
    """Are events the challenger's more (or less) often than they would be, were its rate that of the champion?

    Args:
        direction: what is evidence: `more` events than tolerated, `fewer`, or `either`.
        alpha: probability of ever rejecting, however often one looks, while the true ratio is the tolerated one or on
            its harmless side; in (0, 1).
        tolerated: the ratio of rates that is no reason to reject yet; in (0.05, 20).

    Raises:
        InvalidInput: an unknown direction, or numbers out of their ranges.
    """

    def __init__(self, direction: Direction, alpha: float, tolerated: float = 1.0) -> None:
        if direction not in get_args(Direction):
            raise InvalidInput(
                field="direction", got=direction, expected=" or ".join(get_args(Direction)), next_step="Correct it."
            )
        _within("alpha", alpha, 0.0, 1.0)
        _within("tolerated", tolerated, 0.05, 20.0)
        self.direction = direction
        self.alpha = alpha
        self.tolerated = tolerated
        null = math.log(tolerated)
        beyond = {"more": DELTAS - null, "fewer": null - DELTAS, "either": np.abs(DELTAS - null)}[direction]
        places = np.flatnonzero(beyond >= NEAREST)
        self._side = slice(None) if direction == "either" else slice(int(places[0]), int(places[-1]) + 1)
        self._log_weight = -math.log(len(DELTAS[self._side]))
        self._deltas = np.append(DELTAS, null)  # (162,): the null's own is the last
        self._growths = np.expm1(self._deltas)
        self._log_likelihoods = np.zeros(len(self._deltas))
        self._shared: tuple[float, NDArray[np.float64]] = (0.0, np.zeros(len(self._deltas)))
        self.challenger = 0
        self.champion = 0
        self.log_e = 0.0
        self.most_log_e = 0.0

    def see(self, challenger: int, champion: int, share: float) -> bool:
        """Take the events of a window in.

        Args:
            challenger: events of the challenger's arm.
            champion: events of the champion's.
            share: probability that a request of the window was the challenger's, as it was drawn, or as the requests
                of the window were. At 0 and 1 there is nothing to compare, and the window is left out.

        Returns:
            Whether the null is rejected, by this window or an earlier one.

        Raises:
            InvalidInput: a count below 0, or a share beyond 0 to 1.
        """
        if challenger < 0 or champion < 0 or not 0.0 <= share <= 1.0:
            raise InvalidInput(
                field="challenger, champion, share", got=f"{challenger}, {champion}, {share}",
                expected="counts of 0 or more, and a share from 0 to 1", next_step="Correct what is counted.",
            )  # fmt: skip
        total = challenger + champion
        if not total or share in {0.0, 1.0}:
            return self.rejected
        if share != self._shared[0]:
            self._shared = (share, np.log1p(share * self._growths))
        # log of p^a (1 - p)^b over the same at delta 0; p = share e^delta / (1 - share + share e^delta)
        self._log_likelihoods += challenger * self._deltas - total * self._shared[1]
        self.challenger += challenger
        self.champion += champion
        null = float(self._log_likelihoods[-1])
        self.log_e = _log_sum(self._log_likelihoods[:-1][self._side]) + self._log_weight - null
        self.most_log_e = max(self.most_log_e, self.log_e)
        return self.rejected

    @property
    def rejected(self) -> bool:
        """Whether the evidence has ever reached 1 / alpha."""
        return self.most_log_e >= -math.log(self.alpha)

    @property
    def e_value(self) -> float:
        """Evidence against the null now: 1 for none; at most alpha of all nulls ever see it reach 1 / alpha."""
        return math.exp(min(self.log_e, MOST_LOG))

    def ratio(self, alpha: float) -> Ratio:
        """A confidence sequence of the rate ratio: with probability 1 - alpha it holds the true one at every look.

        Those ratios that a mixture over all deltas does not reject; the log-likelihood is concave, so they are an
        interval, which is widened to the next points of the grid. For a ratio that stays the same.

        Args:
            alpha: probability that the true ratio is ever outside.
        """
        if not self.challenger + self.champion:
            return Ratio(None, 0.0, None)
        log_likelihoods = self._log_likelihoods[:-1]
        least = _log_sum(log_likelihoods) - math.log(len(DELTAS)) + math.log(alpha)
        inside = np.flatnonzero(log_likelihoods > least)  # never empty: a mean is no more than the most
        first, last = int(inside[0]) - 1, int(inside[-1]) + 1
        return Ratio(
            estimate=math.exp(DELTAS[int(np.argmax(log_likelihoods))]),
            low=0.0 if first < 0 else math.exp(DELTAS[first]),
            high=None if last == len(DELTAS) else math.exp(DELTAS[last]),
        )

    def state(self) -> dict[str, Any]:
        """A checkpoint: JSON-able, versioned. A test restored from it goes on bit for bit the same."""
        return stamped(_KIND, _VERSION, {
            "direction": self.direction, "alpha": self.alpha, "tolerated": self.tolerated,
            "challenger": self.challenger, "champion": self.champion,
            "log_likelihoods": self._log_likelihoods.tolist(), "log_e": self.log_e, "most_log_e": self.most_log_e,
        })  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CountTest":
        """The test that wrote this checkpoint.

        Raises:
            InvalidInput: something else, or another version, wrote it.
        """
        state = checked(state, _KIND, _VERSION)
        test = cls(state["direction"], state["alpha"], state["tolerated"])
        log_likelihoods = np.array(state["log_likelihoods"], dtype=np.float64)
        if log_likelihoods.shape != test._log_likelihoods.shape:
            raise InvalidInput(
                field="log_likelihoods", got=f"{log_likelihoods.size} numbers",
                expected=f"{test._log_likelihoods.size}", next_step="Begin the rollout's stage anew.",
            )  # fmt: skip
        test._log_likelihoods = log_likelihoods
        test.challenger = state["challenger"]
        test.champion = state["champion"]
        test.log_e = state["log_e"]
        test.most_log_e = state["most_log_e"]
        return test


def _log_sum(logs: NDArray[np.float64]) -> float:
    most = float(np.maximum.reduce(logs))  # the methods do the same in twice the time
    return most + math.log(float(np.add.reduce(np.exp(logs - most))))


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise InvalidInput(
            field=field, got=str(value), expected=f"a number between {low:g} and {high:g}", next_step="Correct it."
        )
