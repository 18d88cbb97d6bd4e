import json
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loadtests.client import ClientSettings, Outcome, Recording
from loadtests.report import Report, summarise


def recording(latencies_ms, *, lag_ms=0.1, cpu_share=0.2, errors=(), duration_s=10.0):
    step_s = duration_s / (len(latencies_ms) + len(errors))
    outcomes = [Outcome(i * step_s, "home", value, lag_ms) for i, value in enumerate(latencies_ms)]
    outcomes += [Outcome(9.9, "similar", 2.0, lag_ms, kind) for kind in errors]
    settings = ClientSettings(base_url="http://127.0.0.1:8000")
    return Recording(outcomes=outcomes, wall_s=duration_s, cpu_s=cpu_share * duration_s, settings=settings)


def report(*args, **kwargs):
    return Report.of(recording(*args, **kwargs), scenario="home", seed=7, duration_s=10.0)


@given(st.lists(st.floats(0.01, 60_000), min_size=1, max_size=400))
def test_percentiles_are_within_a_thousandth_of_the_exact_ones(values_ms):
    latency = summarise(values_ms)
    ordered = np.sort(values_ms)
    for share, got in ((0.5, latency.p50_ms), (0.99, latency.p99_ms), (0.999, latency.p999_ms)):
        exact = ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]
        assert got == pytest.approx(exact, rel=2e-3, abs=2e-3)
    assert latency.p50_ms <= latency.p90_ms <= latency.p99_ms <= latency.p999_ms <= latency.max_ms


def test_nothing_recorded_is_all_zero():
    assert summarise([]).to_json() == dict.fromkeys(["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms", "mean_ms"], 0.0)


def test_json_has_what_scripts_rely_on():
    answer = json.loads(json.dumps(report([5.0] * 990, errors=["timeout"] * 4 + ["http_5xx"] * 6).to_json()))
    assert answer["requests"] == 1000
    assert answer["rps"] == pytest.approx(99.0)
    assert answer["p50_ms"] == pytest.approx(5.0, rel=2e-3)
    assert answer["errors"] == {"http_5xx": 6, "timeout": 4}
    assert answer["error_count"] == 10
    assert answer["by_request"]["similar"]["errors"] == 10
    assert answer["generator"]["generator_kept_up"] is True
    assert {"p90_ms", "p99_ms", "p999_ms", "max_ms", "degraded", "seed", "offered_rps"} <= answer.keys()


@pytest.mark.parametrize(
    ("kwargs", "reason"), [({"lag_ms": 40.0}, "left late"), ({"cpu_share": 0.97}, "97% of a core")]
)
def test_lag_and_cpu_each_fail_the_generator(kwargs, reason):
    verdict = report([5.0] * 100, **kwargs).generator
    assert not verdict.kept_up
    assert [r for r in verdict.reasons if reason in r]


def test_table_names_requests_figures_and_verdict():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(report([5.0] * 99, errors=["connect"]).table())
    text = console.export_text()
    console.file.close()
    for part in ("home", "similar", "all", "p99.9 ms", "5.00", "connect 1", "the generator kept up"):
        assert part in text


def test_page_is_self_contained_and_well_formed(tmp_path):
    rng = np.random.default_rng(0)
    made = report(rng.lognormal(1.5, 0.6, 5000).tolist(), errors=["timeout", "http_5xx"])
    page = made.write_html(tmp_path / "reports" / "home.html").read_text()
    assert not re.search(r"<script|<link|src=|https?://(?!127\.0\.0\.1:8000)", page)
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        tree = ET.fromstring(chart)
        for line in tree.iter("polyline"):
            points = np.array([[float(v) for v in point.split(",")] for point in line.attrib["points"].split()])
            assert np.all(np.isfinite(points))
            assert np.all((points[:, 0] >= 0) & (points[:, 0] <= 880) & (points[:, 1] >= 0) & (points[:, 1] <= 320))
    curve = next(ET.fromstring(charts[0]).iter("polyline")).attrib["points"].split()
    heights = [float(point.split(",")[1]) for point in curve]
    assert heights == sorted(heights, reverse=True)  # latency only rises with the percentile
    assert f"{made.latency.p99_ms:,.2f}" in page


@pytest.mark.parametrize("latencies_ms", [[], [3.0], [3.0] * 5])
def test_page_renders_for_hardly_any_request(latencies_ms, tmp_path):
    page = report(latencies_ms, errors=["connect"]).write_html(tmp_path / "few.html").read_text()
    assert "connect 1" in page


def test_page_escapes_what_it_is_given(tmp_path):
    made = Report.of(recording([1.0]), scenario="<b>x</b>", seed=1, duration_s=10.0)
    assert "<b>x</b>" not in made.write_html(tmp_path / "x.html").read_text()
