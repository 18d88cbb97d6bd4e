"""A made-up service whose windows a watch sees: counted by real Vitals, on as many replicas as asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np

from serve.vitals import SAMPLE_EVERY, Age, Vitals, Window
from serve.watchtower.health import Change, VersionHealth
from serve.watchtower.selfwatch import SelfWatch

T0 = 1_790_000_000_000
WARM = 160
"""Windows until a threshold is learned and judged by."""


class Service:
    def __init__(self, seed: int = 1, *, rate: int = 200, replicas: int = 1) -> None:
        self.source = np.random.default_rng(seed)
        self.watch = SelfWatch()
        self.rate = rate
        self.vitals = [Vitals() for _ in range(replicas)]
        self.parts: dict[str, Age] = {}
        self.windows = 0
        self.changes: list[Change] = []

    def _one(self) -> Vitals:
        return self.vitals[self.source.integers(len(self.vitals))]

    def answers(
        self, *, slower: float = 1.0, errors: float = 0.002, degraded: float = 0.003, route: str = "/v1/home"
    ) -> None:
        for seconds in self.source.lognormal(np.log(0.004), 0.4, self.source.poisson(self.rate)) * slower:
            status = 500 if self.source.random() < errors else 200
            reasons = ("features_timeout",) if self.source.random() < degraded else ("unknown_profile",)
            self._one().answered(route, status, seconds, reasons)

    def decisions(
        self, version: str, *, rate: int | None = None, fallbacks: float = 0.002, slower: float = 1.0,
        mean: float = 0.6, spread: float = 0.1, model: str = "recommend",
    ) -> None:  # fmt: skip
        for _ in range(self.source.poisson(self.rate if rate is None else rate)):
            told = self._one().model(model, lambda: None)
            seconds = slower * self.source.lognormal(np.log(0.001), 0.3)
            told.decided(version, 1, int(self.source.random() < fallbacks), seconds)
            if self.source.random() < 1 / SAMPLE_EVERY:
                told.scored(version, self.source.normal(mean, spread))

    def take(self) -> list[Window]:
        """What each replica counted."""
        windows = [one.take() for one in self.vitals]
        windows[0].parts = dict(self.parts)
        return windows

    def turn(self) -> None:
        """End the window, and let the watch see it."""
        together = Window()
        for window in self.take():
            together.merge(Window.load(window.dump()))
        self.windows += 1
        self.changes += self.watch.see(together, T0 + 10_000 * self.windows)

    def run(self, windows: int, play: Callable[[], Any]) -> set[tuple[str, str]]:
        """Play so many windows; what was in an episode at any time."""
        seen = set(self.open)
        for _ in range(windows):
            play()
            self.turn()
            seen |= set(self.open)
        return seen

    @property
    def open(self) -> list[tuple[str, str]]:
        return [(one.what, one.version) for one in self.watch.health().alarms if one.is_open]

    def total(self, what: str, version: str = "") -> int:
        return next(one.total for one in self.watch.health().alarms if (one.what, one.version) == (what, version))

    def health(self, version: str) -> VersionHealth:
        found = self.watch.health().version("recommend", version)
        assert found is not None
        return found
