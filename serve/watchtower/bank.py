"""Many ratio detectors at once: serve.watchtower.counts.RatioDetector over arrays, with the same scores.

A window brings the counts of thousands of series (slices times metrics). One detector object each would spend the time
on the interpreter; here all of them take a step in a few array operations, and tails are summed only for the few
series in which more is bad than is usual. Shapes: N series, K spans.
"""

import io
import math
import zipfile
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput
from serve.watchtower.likelihoods import beta_binomial_tail
from serve.watchtower.rates import ANOMALOUS_CAP, CAP, LEAST_SIZE, SPANS, SPREAD_SPANS, TRIED_SPANS, combined

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

VERSION: Final = 2
LONGEST: Final = SPANS[-1]
SUSPICIOUS: Final = 2.0
"""Standard deviations above what is usual, in some span, from which a tail is summed; below it no alarm is near."""

_SPANS: Final = np.array(SPANS)
_FIELDS: Final = {
    "count": ((), np.int64), "past": ((2,), np.float64), "ring": ((LONGEST, 2), np.float64),
    "odd": ((LONGEST,), np.bool_), "head": ((), np.int64), "size": ((), np.int64),
    "sums": ((len(SPANS), 2), np.float64), "shift": ((2,), np.float64), "shifted": ((), np.int64),
    "calm": ((), np.int64), "spread_count": ((len(SPANS),), np.int64), "spread_excess": ((len(SPANS),), np.float64),
    "spread_size": ((len(SPANS),), np.float64),
}  # fmt: skip
_STEADY_FIELDS: Final = {
    f"{of}_{part}": ((len(SPANS),), np.float64) for of in ("steady", "kept") for part in ("excess", "size")
}


def _fields(*, steady: bool) -> dict[str, tuple[tuple[int, ...], Any]]:
    return _FIELDS | _STEADY_FIELDS if steady else dict(_FIELDS)


class RatioBank:
    """N ratio detectors that look for more bad ones than usual.

    Args:
        half_life: windows after which one counts half in the baseline.
        warm_up: windows that are learned before any is judged.
        adopt_after: anomalous windows that make a new normal.
        alarm: windows less probable than this are not learned.
        steady: judge by the spread of before the latest LONGEST windows or more, as the share always is: a rise that
            takes so long must not widen what it is judged by.
    """

    def __init__(
        self, *, half_life: int = 360, warm_up: int = 90, adopt_after: int = 180, alarm: float = 1e-4,
        steady: bool = False,
    ) -> None:  # fmt: skip
        self.half_life = half_life
        self.warm_up = warm_up
        self.adopt_after = adopt_after
        self.alarm = alarm
        self.steady = steady
        self.length = 0
        self._keep = 2.0 ** (-1.0 / half_life)
        self._memories = np.maximum(half_life, SPREAD_SPANS * _SPANS)
        self._at: dict[str, NDArray[Any]] = {
            name: np.zeros((64, *shape), kind) for name, (shape, kind) in _fields(steady=steady).items()
        }

    def grow(self, length: int) -> None:
        """Make room for N = `length` series; new ones know nothing."""
        capacity = len(self._at["count"])
        if length > capacity:
            for name, held in self._at.items():
                more = np.zeros((max(length, 2 * capacity), *held.shape[1:]), held.dtype)
                more[:capacity] = held
                self._at[name] = more
        self.length = max(self.length, length)

    def shares(self, rows: Ints) -> Floats:
        """The share of bad ones that is usual in some series."""
        past = self._at["past"][rows]
        shares: Floats = (past[:, 0] + 0.5) / (past[:, 1] + 1.0)
        return shares

    def recent(self, row: int, span: int) -> tuple[float, float]:
        """Bad and total of one series over its latest windows, one less than one of SPANS, named by its place."""
        bad, total = self._at["sums"][row, span].tolist()
        return bad, total

    def goes_on(self, row: int, usual: float) -> bool:
        """Whether the latest two windows are worse than usual: sums over longer spans remember what is over."""
        bad, total = self.recent(row, 1)
        return bad > usual * total + 0.5 * math.sqrt(usual * total) + 0.5

    def reset(self, rows: Ints) -> None:
        """Let some series know nothing again."""
        for held in self._at.values():
            held[rows] = 0

    def see(self, rows: Ints, bad: Floats, total: Floats) -> Floats:
        """Judge a window, then learn it.

        Args:
            rows: series that have counts, each once (R,).
            bad: of each, 0 to `total` (R,).
            total: of each, above 0 (R,).

        Returns:
            Probability of a share at least this large (R,); 1 where it is no larger than usual or can't be judged.
        """
        at = self._at
        window = np.stack([np.minimum(bad, total), total], axis=1)
        sums = at["sums"][rows] + window[:, None, :]  # (R, K, 2)
        complete = at["size"][rows][:, None] + 1 >= _SPANS
        if self.steady:
            self._keep_spread(rows)
        p_values = self._judge(rows, sums, complete)
        odd = p_values < self.alarm
        at["count"][rows] += 1
        self._learn_spread(rows, sums, complete, odd)
        self._push(rows, window, odd)
        return p_values

    def _spread(self, rows: Ints, of: str = "spread") -> Floats:
        excess, size = self._at[f"{of}_excess"][rows], self._at[f"{of}_size"][rows]
        return np.maximum(excess / (size + LEAST_SIZE), 0.0)

    def _keep_spread(self, rows: Ints) -> None:
        """Every LONGEST windows of a series: what was the spread the last time is what it is judged by from now on."""
        due = rows[self._at["count"][rows] % LONGEST == 0]
        for part in ("excess", "size"):
            self._at[f"steady_{part}"][due] = self._at[f"kept_{part}"][due]
            self._at[f"kept_{part}"][due] = self._at[f"spread_{part}"][due]

    def _judge(self, rows: Ints, sums: Floats, complete: NDArray[np.bool_]) -> Floats:
        at = self._at
        p_values = np.ones(len(rows))
        known = at["past"][rows, 1]
        share = self.shares(rows)
        spread = np.minimum(self._spread(rows, "steady" if self.steady else "spread"), 0.99)
        judged = complete & (at["spread_count"][rows] >= TRIED_SPANS * _SPANS)
        concentration = 1.0 / (1.0 / (known[:, None] + 2.0) + spread) - 1.0
        bad, total = sums[..., 0], sums[..., 1]
        mean = total * share[:, None]
        inflation = 1.0 + (total - 1.0) / (concentration + 1.0)
        deviation = np.sqrt(mean * (1.0 - share[:, None]) * inflation)
        suspicious = (judged & (bad > mean + SUSPICIOUS * deviation)).any(axis=1)
        ready = (at["count"][rows] >= self.warm_up) & (known > 0.0)
        for place in np.flatnonzero(suspicious & ready).tolist():
            tails = [
                beta_binomial_tail(
                    float(bad[place, span]), float(total[place, span]), float(share[place]),
                    float(concentration[place, span]), upper=True,
                )
                if judged[place, span]
                else None
                for span in range(len(SPANS))
            ]  # fmt: skip
            p_values[place] = combined(tails)
        return p_values

    def _learn_spread(self, rows: Ints, sums: Floats, complete: NDArray[np.bool_], odd: NDArray[np.bool_]) -> None:
        at = self._at
        share = self.shares(rows)[:, None]
        bad, total = sums[..., 0], sums[..., 1]
        squared = (bad - total * share) ** 2 / (total * share * (1.0 - share))
        size = total - 1.0
        trusted = at["count"][rows] > self.warm_up
        most = np.where(odd, ANOMALOUS_CAP, CAP)[:, None] * (1.0 + self._spread(rows) * size)
        squared = np.where(trusted[:, None], np.minimum(squared, most), squared)
        learns = complete & (at["past"][rows, 1] > 0.0)[:, None]
        count = at["spread_count"][rows] + learns
        weight = np.where(learns, 1.0 / np.minimum(np.maximum(count, 1), self._memories), 0.0)
        excess, sizes = at["spread_excess"][rows], at["spread_size"][rows]
        at["spread_count"][rows] = count
        at["spread_excess"][rows] = excess + weight * (squared - 1.0 - excess)
        at["spread_size"][rows] = sizes + weight * (size - sizes)

    def _push(self, rows: Ints, window: Floats, odd: NDArray[np.bool_]) -> None:
        """Take a window into the recent ones, and the one that leaves them into the baseline or the shift."""
        at = self._at
        head, size = at["head"][rows], at["size"][rows]
        ring = at["ring"]
        for place, span in enumerate(SPANS):
            before = span - 1  # windows that the sum of a span holds beside the newest
            if before:
                leaves = size >= before
                oldest = ring[rows, (head - before) % LONGEST]
                at["sums"][rows, place] += window - np.where(leaves[:, None], oldest, 0.0)
        full = size >= LONGEST
        left, left_odd = ring[rows, head].copy(), at["odd"][rows, head].copy()
        ring[rows, head] = window
        at["odd"][rows, head] = odd
        at["head"][rows] = (head + 1) % LONGEST
        at["size"][rows] = np.minimum(size + 1, LONGEST)
        calm = rows[full & ~left_odd]
        if len(calm):
            at["past"][calm] = at["past"][calm] * self._keep + left[full & ~left_odd]
            at["calm"][calm] += 1
            self._forget_shift(calm[at["calm"][calm] >= LONGEST])
        shifting = rows[full & left_odd]
        if len(shifting):
            at["calm"][shifting] = 0
            at["shifted"][shifting] += 1
            at["shift"][shifting] += left[full & left_odd]
            self._adopt(shifting[at["shifted"][shifting] >= self.adopt_after])

    def _adopt(self, rows: Ints) -> None:
        """The shift is the new normal."""
        at = self._at
        at["past"][rows] = at["shift"][rows]
        at["size"][rows] = 0
        at["sums"][rows] = 0.0
        self._forget_shift(rows)

    def _forget_shift(self, rows: Ints) -> None:
        for name in ("shift", "shifted", "calm"):
            self._at[name][rows] = 0

    def dump(self) -> bytes:
        """A checkpoint: arrays in numpy's own format, with no pickles."""
        file = io.BytesIO()
        settings = np.array(
            [VERSION, self.half_life, self.warm_up, self.adopt_after, self.alarm, self.steady], np.float64
        )
        arrays: dict[str, Any] = {name: held[: self.length] for name, held in self._at.items()}
        np.savez_compressed(file, settings=settings, **arrays)
        return file.getvalue()

    @classmethod
    def load(cls, dumped: bytes) -> Self:
        """The bank that wrote this checkpoint.

        Raises:
            InvalidInput: another version wrote it, or it is damaged.
        """
        try:
            with np.load(io.BytesIO(dumped), allow_pickle=False) as found:
                settings: list[float] = found["settings"].tolist()
                fields = _fields(steady=bool(settings[-1]))
                arrays = {name: found[name] for name in fields}
        except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise _unreadable(type(error).__name__) from error
        if len(settings) != 6 or int(settings[0]) != VERSION:
            raise _unreadable(f"version {settings[:1]}")
        bank = cls(
            half_life=int(settings[1]),
            warm_up=int(settings[2]),
            adopt_after=int(settings[3]),
            alarm=settings[4],
            steady=bool(settings[5]),
        )
        bank.grow(len(arrays["count"]))
        for name, (shape, kind) in fields.items():
            if arrays[name].shape != (bank.length, *shape) or arrays[name].dtype != kind:
                raise _unreadable(f"{name} {arrays[name].dtype} {arrays[name].shape}")
            bank._at[name][: bank.length] = arrays[name]
        return bank


def _unreadable(got: str) -> InvalidInput:
    return InvalidInput(
        field="bank", got=got, expected=f"a checkpoint of version {VERSION}",
        next_step="Restore it with the release that wrote it, or begin anew.",
    )  # fmt: skip
