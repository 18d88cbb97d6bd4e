"""How playback goes by network and by title: sums over windows that forget, and shares of them.

A share is (bad + PRIOR * usual) / (total + PRIOR), where usual is the whole audience's bad / total over the same time:
PRIOR of a metric's own total pull as hard as what was heard, so an entity of which little is known looks like everyone.
"""

from collections.abc import Sequence
from typing import Any, Final, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from features.networks import Network
from features.qoe import Qoe
from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.windows import COLUMN, WIDTH, WINDOW_MS, Window
from serve.watchtower.networks import KEEP

PRIOR: Final = 20.0
"""Pseudo-count of each share: starts, or sessions by window, that went as they do for everyone."""

LEAST_WEIGHT: Final = 20.0
"""Below so much, what is known stays as it is."""

FORGOTTEN: Final = 0.5
"""Sums of less weight are dropped."""

MOST: Final = 10_000
"""Networks, and titles, that are kept; those of the least weight make room, of equal ones the last by name."""

_SHARES: Final = ("start_failures", "slow_starts", "stalls", "failures", "low_bitrate")
_SUMS: Final = 1 + 2 * len(_SHARES)
"""The weight, then total and bad of each share; S in shapes."""

_CDN: Final = DIMENSIONS.index("cdn")
_ASN: Final = DIMENSIONS.index("asn")
_TITLE: Final = DIMENSIONS.index("title")

K = TypeVar("K", Network, str)


def _mapping() -> NDArray[np.int64]:
    """Which of a window's columns add up to which sum (WIDTH, S)."""
    made = np.zeros((WIDTH, _SUMS), np.int64)
    made[COLUMN["errors"], 0] = 1  # sessions that were there
    made[COLUMN["start_failures"] + 1, 0] = 1  # which are not there when the window ends
    for place, metric in enumerate(_SHARES):
        made[COLUMN[metric], 1 + 2 * place] = 1
        made[COLUMN[metric] + 1, 2 + 2 * place] = 1
    made[COLUMN["start_timeouts"] + 1, 1:3] = 1  # a start of which nothing is heard is one that failed
    return made


_MAPPING: Final = _mapping()


class QoeSums:
    """Sums of windows, each worth half as much every half hour: of everyone, by network (cdn, asn), by title."""

    def __init__(self, *, most: int = MOST) -> None:
        self._everyone = np.zeros(_SUMS)
        self._networks = _Table[Network](most)
        self._titles = _Table[str](most)

    def add(self, window: Window) -> None:
        """Take the next window in. Its leaves' order does not matter: they are added as whole numbers."""
        rows = window.table() @ _MAPPING  # (leaves, S)
        self._everyone = self._everyone * KEEP + rows.sum(axis=0)
        end_ms = window.start_ms + WINDOW_MS
        leaves = window.counts
        networks = [(leaf[_CDN], leaf[_ASN]) if leaf[_CDN] and leaf[_ASN] else None for leaf in leaves]
        self._networks.add(networks, rows, end_ms)
        self._titles.add([leaf[_TITLE] or None for leaf in leaves], rows, end_ms)

    def networks(self) -> dict[Network, Qoe]:
        """How playback goes on each network of which enough was heard."""
        return self._networks.qoe(self._usual())

    def titles(self) -> dict[str, Qoe]:
        """How playback goes of each title of which enough was heard."""
        return self._titles.qoe(self._usual())

    def _usual(self) -> NDArray[np.float64]:
        """The whole audience's shares; 0 where nothing was counted."""
        total, bad = self._everyone[1::2], self._everyone[2::2]
        return np.divide(bad, total, out=np.zeros(len(_SHARES)), where=total > 0)

    def dump(self) -> list[Any]:
        """As JSON takes it, exactly."""
        return [self._everyone.tolist(), self._networks.dump(), self._titles.dump()]

    @classmethod
    def load(cls, dumped: Sequence[Any], *, most: int = MOST) -> Self:
        """The reverse of `dump`."""
        sums = cls(most=most)
        everyone, networks, titles = dumped
        sums._everyone = np.array(everyone, np.float64)
        sums._networks.load([(cdn, asn) for cdn, asn in networks[0]], *networks[1:])
        sums._titles.load(*titles)
        return sums


class _Table(Generic[K]):
    """Sums (n, S) by key, and the end of the newest window that each comes from (n,)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: dict[K, int] = {}
        self._sums = np.zeros((0, _SUMS))
        self._last_ms = np.zeros(0, np.int64)

    def add(self, keys: Sequence[K | None], rows: NDArray[np.int64], end_ms: int) -> None:
        """Let what is known fade, and add a window's rows (len(keys), S); those without a key are left out."""
        self._sums *= KEEP
        self._retain(self._sums[:, 0] >= FORGOTTEN)
        heard = (rows.sum(axis=1) > 0).tolist()
        places, used, found = self._places, [], []
        for leaf, key in enumerate(keys):
            if key is not None and heard[leaf]:
                used.append(leaf)
                found.append(places.setdefault(key, len(places)))
        at = np.array(found, np.int64)
        new = len(places) - len(self._sums)
        self._sums = np.concatenate([self._sums, np.zeros((new, _SUMS))])
        self._last_ms = np.concatenate([self._last_ms, np.zeros(new, np.int64)])
        told = np.zeros((len(places), _SUMS), np.int64)
        np.add.at(told, at, rows[used])
        self._sums += told
        self._last_ms[at] = end_ms
        if len(places) > self._most:
            keys_by_place, weights = list(places), self._sums[:, 0].tolist()
            largest = sorted(range(len(weights)), key=lambda place: (-weights[place], keys_by_place[place]))
            kept = np.zeros(len(weights), np.bool_)
            kept[largest[: self._most]] = True
            self._retain(kept)

    def _retain(self, kept: NDArray[np.bool_]) -> None:
        if not kept.all():
            keys = [key for key, is_kept in zip(self._places, kept.tolist(), strict=True) if is_kept]
            self._places = {key: place for place, key in enumerate(keys)}
            self._sums, self._last_ms = self._sums[kept], self._last_ms[kept]

    def qoe(self, usual: NDArray[np.float64]) -> dict[K, Qoe]:
        """Records of those of enough weight; usual shares are the whole audience's (S - 1) / 2."""
        enough = self._sums[:, 0] >= LEAST_WEIGHT
        sums = self._sums[enough]
        shares = (sums[:, 2::2] + PRIOR * usual) / (sums[:, 1::2] + PRIOR)
        keys = [key for key, is_enough in zip(self._places, enough.tolist(), strict=True) if is_enough]
        numbers = zip(sums[:, 0].tolist(), shares.tolist(), self._last_ms[enough].tolist(), strict=True)
        return {
            key: Qoe(weight=weight, **dict(zip(_SHARES, of_each, strict=True)), last_ts_ms=last_ts_ms)
            for key, (weight, of_each, last_ts_ms) in zip(keys, numbers, strict=True)
        }

    def dump(self) -> list[Any]:
        return [list(self._places), self._last_ms.tolist(), self._sums.tolist()]

    def load(self, keys: Sequence[K], last_ms: Sequence[int], sums: Sequence[Sequence[float]]) -> None:
        self._places = {key: place for place, key in enumerate(keys)}
        self._sums = np.array(sums, np.float64).reshape(-1, _SUMS)
        self._last_ms = np.array(last_ms, np.int64)
