"""Prometheus alert rules: whole, and about metrics and labels that the service has. There is no promtool here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from serve.metrics import Metrics

FILE = Path(__file__).parents[2] / "deployments" / "prometheus" / "alerts.yml"
ASKED = {
    "OutageConfirmed", "WatchtowerStale", "TelemetryMalformed", "HighErrorRate", "SlowAnswers", "ModelRefused",
    "SelfAlarm", "TelemetryRefused",
}  # fmt: skip
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
METRIC = re.compile(r"\bplayhead_\w+")
SELECTOR = re.compile(r"\b(playhead_\w+)\{([^}]*)\}")
MATCHER = re.compile(r'\s*(\w+)\s*(?:=|!=|=~|!~)\s*"(?:[^"\\]|\\.)*"\s*')
GROUPED = re.compile(r"\bby \(([^)]*)\) \((?:(?:rate|increase)\()?(playhead_\w+)")
DURATION = re.compile(r"\d+[smhd]")


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(FILE.read_text())
    assert set(document) == {"groups"}
    return [rule for group in document["groups"] for rule in group["rules"]]


def series(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Name of each sample that the service can show -> its labels."""
    found = {}
    for collector in registry._collector_to_names:
        for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
            labels = set(getattr(collector, "_labelnames", ()))
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


KNOWN = series(Metrics().registry)


def test_the_rules_that_are_promised_are_there() -> None:
    document = yaml.safe_load(FILE.read_text())
    names = [rule["alert"] for rule in rules()]
    assert set(names) >= ASKED
    assert len(names) == len(set(names))
    groups = [group["name"] for group in document["groups"]]
    assert len(groups) == len(set(groups))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_is_whole_and_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert DURATION.fullmatch(rule.get("for", "1m"))
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert all(text and "\n" not in text for text in rule["annotations"].values())
    expression = rule["expr"]
    named = METRIC.findall(expression)
    assert named
    assert set(named) <= set(KNOWN), f"no such metric; there are {sorted(KNOWN)}"
    for name, matchers in SELECTOR.findall(expression):
        parts = [MATCHER.fullmatch(part) for part in matchers.split(",")]
        assert all(parts), matchers
        assert {part[1] for part in parts if part} <= KNOWN[name], matchers
    kept = set()
    for told, name in GROUPED.findall(expression):
        labels = {label.strip() for label in told.split(",")}
        assert labels <= KNOWN[name], f"{name} has {KNOWN[name]}"
        kept |= labels
    assert expression.count(" by ") == len(GROUPED.findall(expression))
    shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert shown <= (kept or set.intersection(*(KNOWN[name] for name in named)))
    assert all(name in KNOWN for name in METRIC.findall(rule["annotations"]["runbook"]))
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)
    if "histogram_quantile" in expression:
        assert "le" in kept, "a quantile needs the buckets"
    for name in named:  # a counter is asked how fast it grows, a gauge what it says
        grows = re.search(rf"(?:rate|increase)\({name}(?:{{[^}}]*}})?\[", expression)
        assert (grows is not None) is name.endswith(("_total", "_bucket")), name
