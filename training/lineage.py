"""Where a model comes from: its data, its parent, its seed, and what its figures depend on."""

import importlib.metadata
import platform
from functools import cache
from typing import Final

import polars as pl

from serve.artifacts import Lineage
from training.datasets import Dataset

PACKAGES: Final = ("playhead", "torch", "openvino", "numpy", "scipy", "polars", "pyarrow", "river", "numba", "mlflow")
"""What a model's figures, or the reading of its data, may depend on."""

_LONGEST: Final = 512


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = {"python": platform.python_version(), "platform": platform.platform()[:_LONGEST]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)[:_LONGEST]
        except importlib.metadata.PackageNotFoundError:  # an extra that is not here is no part of it
            continue
    return tuple(found.items())


def environment() -> dict[str, str]:
    """What this process runs on: `python`, `platform`, and package -> version of those of PACKAGES that are here."""
    return dict(_versions())


def lineage_of(
    dataset: Dataset | None, *, seed: int, parent: str = "", run: str = "", until_ms: int | None = None
) -> Lineage:
    """The lineage of a version that is made now, in this process.

    Args:
        dataset: what it is trained on; None where it is not trained on events.
        seed: of everything random.
        parent: version that it is warm-started from; empty: none.
        run: id of the tracked run that makes it; empty: none.
        until_ms: events at this time and later are not trained on, UTC milliseconds; None: all are.
    """
    rows, first_ms, last_ms = 0, 0, 0
    if dataset is not None:
        rows, first_ms, last_ms = dataset.rows["events"], dataset.first_ts_ms, dataset.last_ts_ms
        if until_ms is not None and until_ms <= last_ms:
            used = dataset.scan("events").filter(pl.col("ts") < until_ms)
            found = used.select(rows=pl.len(), first=pl.col("ts").min(), last=pl.col("ts").max()).collect().row(0)
            rows, first_ms, last_ms = (int(value or 0) for value in found)
    return Lineage(
        dataset="" if dataset is None else dataset.name,
        first_ts_ms=first_ms,
        last_ts_ms=last_ms,
        rows=rows,
        parent=parent,
        seed=seed,
        run=run,
        environment=environment(),
    )
