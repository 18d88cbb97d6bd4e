"""The published methods do what their papers say where their papers' assumptions hold."""

import numpy as np
import pytest

from serve.watchtower.localisation_table import LeafTable
from training.watchtower.incidents import LEVELS, incidents
from training.watchtower.localisation_comparison import compare
from training.watchtower.public_incidents import PUBLIC, public_incidents
from training.watchtower.rivals import METHODS, adtributor, riskloc, robustspot


def table_of(bad, bad_before, total=1000.0):
    """Leaves of a 4 x 3 grid of (city, carrier), the same sessions in each."""
    codes = np.array([[city, carrier] for city in range(4) for carrier in range(3)])
    leaves = np.full(12, total)
    return LeafTable(
        dimensions=("city", "carrier"), values=(("a", "b", "c", "d"), ("x", "y", "z")), codes=codes, total=leaves,
        bad=np.asarray(bad, dtype=float).ravel(), total_before=leaves,
        bad_before=np.asarray(bad_before, dtype=float).ravel(), windows=1,
    )  # fmt: skip


@pytest.fixture
def grid():
    return 20.0 + np.random.default_rng(1).uniform(-1, 1, (4, 3))


def test_adtributor_names_the_values_of_one_dimension(grid):
    now = grid.copy()
    now[1:3] += 300.0
    verdict = adtributor(table_of(now, grid))
    assert {one["city"] for one in verdict.causes} == {"b", "c"}
    assert verdict.ranked[: len(verdict.causes)] == verdict.causes


def test_adtributor_cannot_name_a_combination(grid):
    now = grid.copy()
    now[1, 2] += 500.0
    assert all(len(one) == 1 for one in adtributor(table_of(now, grid)).ranked)


def test_riskloc_names_a_combination():
    """In the setting of its own paper."""
    incident = next(public_incidents(12, 1, settings=tuple(one for one in PUBLIC if one.name == "public L")))
    verdict = riskloc(incident.table())
    assert verdict.causes
    assert set(map(str, verdict.causes[:1])) <= set(map(str, incident.causes))


def test_robustspot_ranks_a_value_and_its_combination(grid):
    now = grid.copy()
    now[1] += 300.0
    verdict = robustspot(table_of(now, grid))
    assert verdict.ranked[0] == {"city": "b"}


@pytest.mark.parametrize("method", ["adtributor", "riskloc", "robustspot"])
def test_nothing_changed_names_nothing_or_runs(method, grid):
    verdict = METHODS[method](table_of(grid, grid))
    assert not verdict.external


@pytest.mark.parametrize("method", METHODS)
def test_no_history_in_some_leaves_and_no_sessions_in_others(method):
    incident = next(incidents(8, 1))
    incident.total[:-1, ::3] = incident.bad[:-1, ::3] = 0
    incident.total[-1, ::5] = incident.bad[-1, ::5] = 0
    METHODS[method](incident.table())


def test_one_table_of_all_methods():
    levels = tuple(level for level in LEVELS if level.name in {"one dimension", "no incident"})
    seen = []
    report = compare(incidents(8, 4, levels=levels), progress=seen.append)
    assert seen == [1, 2, 3, 4]
    assert set(report) == {"playhead", "riskloc", "robustspot", "adtributor"}
    for rows in report.values():
        assert set(rows) == {"one dimension", "no incident", "all"}
        for row in rows.values():
            assert set(row) == {"cases", "top1", "top3", "f1", "ms", "worst_ms"}
            assert 0 <= row["f1"] <= 1
    assert report["playhead"]["all"]["top1"] == 1.0
    assert report["adtributor"]["one dimension"]["top1"] == 1.0
