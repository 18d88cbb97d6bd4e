"""The demo's chart: shares of plays by version, and a page that needs nothing else."""

from deployments.demos.chart import Mark, label_rows, plays_by_version, render
from loadtests.browsing import Visit

OLD, NEW = "a" * 12, "b" * 12


def visits() -> list[Visit]:
    found = [Visit(place / 10, OLD, played=place % 4 == 0) for place in range(400)]
    found += [Visit(20 + place / 10, NEW, played=place % 2 == 0) for place in range(200)]
    return [*found, Visit(5.0, error="timeout")]


def test_shares_are_counted_by_version_and_time() -> None:
    found = plays_by_version(visits(), 10.0)
    assert [(at_s, pages) for at_s, _, pages in found[OLD]] == [(5.0, 100), (15.0, 100), (25.0, 100), (35.0, 100)]
    assert [share for _, share, _ in found[OLD]] == [0.25] * 4
    assert [(at_s, share) for at_s, share, _ in found[NEW]] == [(25.0, 0.5), (35.0, 0.5)]


def test_a_page_names_versions_marks_and_failures_and_asks_for_nothing_else() -> None:
    marks = [Mark(at_s=10.0, text="taste <shifts>", label="shift"), Mark(at_s=70.0, text="later")]
    page = render("A demo", visits(), marks, {OLD: "first", NEW: "retrained"})
    for told in ("601 visits, 1 of them", "taste &lt;shifts&gt;", "1:10", OLD, "retrained", "polyline"):
        assert told in page
    assert page.count('class="mark"') == 1
    assert not any(mark in page for mark in ("<script", "http://", "https://"))


def test_a_demo_without_visits_still_has_a_page() -> None:
    assert "0 visits" in render("A demo", [], [], {})


def test_no_label_covers_another() -> None:
    assert label_rows([]) == []
    labels = [(100.0, "shift"), (101.0, "drift"), (300.0, "gate"), (300.0, "10%"), (300.0, "tried")]
    assert label_rows(labels) == [0, 1, 0, 1, 2]
    at_the_end = [(800.0, "poisoned"), (860.0, "rollback"), (870.0, "over")]  # which end at their marks
    assert label_rows(at_the_end) == [0, 1, 0]
