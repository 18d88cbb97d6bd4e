"""Throughput by network, from what players measure: sums that add up over windows, partitions and time."""

import math
from collections.abc import Sequence
from typing import Any, Final, Self

from features.networks import Network, Throughput
from serve.telemetry.reports import Report

KEEP: Final = 2.0 ** (-1.0 / 180)
"""Of sums from window to window: half is forgotten in half an hour."""

LEAST_KBPS: Final = 10.0
MOST_KBPS: Final = 10_000_000.0
LEAST_REPORTS: Final = 20.0
"""Below so many, what is known of a network stays as it is."""

MOST_NETWORKS: Final = 50_000


class NetworkSums:
    """Number, sum and sum of squares of ln(kbit/s) by network (cdn, asn)."""

    def __init__(self) -> None:
        self.by_network: dict[Network, list[float]] = {}

    def hear(self, report: Report) -> None:
        """Take a report's measured throughput in, where it says one and where from."""
        kbps = report.number("mtp")
        if kbps is None or not LEAST_KBPS <= kbps <= MOST_KBPS:
            return
        network = report.context.get("cdn", ""), report.context.get("asn", "")
        if all(network):
            log = math.log(kbps)
            self._add(network, (1.0, log, log * log))

    def add(self, other: Self) -> None:
        """Add other sums."""
        for network, sums in other.by_network.items():
            self._add(network, sums)

    def _add(self, network: Network, sums: Sequence[float]) -> None:
        known = self.by_network.get(network)
        if known is None:
            if len(self.by_network) < MOST_NETWORKS:
                self.by_network[network] = list(sums)
            return
        for place, number in enumerate(sums):
            known[place] += number

    def dump(self) -> list[Any]:
        """As JSON takes it."""
        return [[*network, *sums] for network, sums in self.by_network.items()]

    @classmethod
    def load(cls, dumped: Sequence[Any]) -> Self:
        """The reverse of `dump`."""
        sums = cls()
        sums.by_network = {(row[0], row[1]): list(row[2:]) for row in dumped}
        return sums


def merged(past: NetworkSums, window: NetworkSums) -> NetworkSums:
    """The past, a window later."""
    sums = NetworkSums()
    sums.by_network = {
        network: [number * KEEP for number in numbers]
        for network, numbers in past.by_network.items()
        if numbers[0] > 0.5
    }
    sums.add(window)
    return sums


def throughput_of(sums: NetworkSums, now_ms: int) -> dict[Network, Throughput]:
    """What sums say of networks of which enough was heard."""
    found = {}
    for network, (count, total, squares) in sums.by_network.items():
        if count >= LEAST_REPORTS:
            mean = total / count
            spread = math.sqrt(max(squares / count - mean * mean, 0.0))
            found[network] = Throughput(
                log_mean_kbps=mean, log_std_kbps=max(spread, 0.05), sessions=round(count), last_ts_ms=now_ms
            )
    return found
