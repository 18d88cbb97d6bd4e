"""A verdict on disk: gate.json, and gate.html, one self-contained page with inline SVG and no scripts.

Units: x of the interval chart is the difference, in per cent of the champion's where it is relative.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from serve.artifacts import replace_file
from training.gates.verdict import Comparison, Curve, Verdict

JSON: Final = "gate.json"
HTML: Final = "gate.html"

_WIDTH: Final = 880
_LEFT: Final = 210
_RIGHT: Final = 90
_LINE: Final = 24
_SIDE: Final = 260

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #16202b; --soft: #5c6b7a; --line: #dfe5eb; --page: #f7f9fb; --card: #ffffff;
  --a: #1769d2; --b: #e0762b; --bad: #c62839; --good: #1b7f4b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf2; --soft: #94a3b3; --line: #2c3743; --page: #10161d;
  --card: #18212b; --a: #62a8ff; --b: #ffa564; --bad: #ff7482; --good: #5fd39a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 960px; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 0 0 .2rem; } p { margin: .2rem 0 .8rem; }
.soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.3rem;
  margin-top: 1.1rem; }
.verdict { border-left: 4px solid var(--good); } .verdict.bad { border-left-color: var(--bad); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .zero { stroke: var(--soft); } .mark { stroke: var(--bad); stroke-dasharray: 3 4; }
.a { stroke: var(--a); fill: var(--a); } .b { stroke: var(--b); fill: var(--b); }
.bad { color: var(--bad); stroke: var(--bad); fill: var(--bad); } .good { color: var(--good); }
section.bad { fill: none; stroke: none; color: var(--ink); } .curve { fill: none; stroke-width: 2; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .35rem .6rem; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { color: var(--soft); font-weight: 500; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 1rem; } .scroll { overflow-x: auto; }
"""  # noqa: E501  one rule set a line reads better than wrapped rules


def write_report(verdict: Verdict, folder: Path) -> tuple[Path, Path]:
    """Write gate.json and gate.html into a folder, each whole or not at all; what was there is replaced.

    Returns:
        Their paths.

    Raises:
        OSError: the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / JSON, folder / HTML
    replace_file(paths[1], render(verdict).encode())
    content = json.dumps(verdict.as_json(), indent=2, allow_nan=False, ensure_ascii=False)
    replace_file(paths[0], f"{content}\n".encode())
    return paths


def render(verdict: Verdict) -> str:
    """The page."""
    title = f"{verdict.model} {verdict.candidate} against {verdict.champion}"
    word = "passed" + (", better" if verdict.better else ", no worse") if verdict.passed else "rejected"
    reasons = "".join(f"<p><b>{escape(check.name)}</b>: {escape(check.text)}</p>" for check in verdict.failed)
    reasons = reasons or "<p>All checks that decide were passed.</p>"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_facts(verdict))}</p>',
        f'<section class="verdict{"" if verdict.passed else " bad"}"><h2>{word}</h2>{reasons}</section>',
    ]
    for relative in (True, False):
        found = [one for one in verdict.comparisons if one.relative is relative]
        if found:
            parts.append(_section("Differences", _note(relative=relative), _intervals(found)))
    if verdict.curves:
        heads = list(dict.fromkeys(curve.head for curve in verdict.curves))
        drawn = "".join(_reliability([one for one in verdict.curves if one.head == head]) for head in heads)
        note = (
            "Predicted against what happened, in bins of as many starts each; the diagonal is right. "
            "Blue is the candidate, orange the champion."
        )
        parts.append(_section("Reliability", note, f'<div class="pair">{drawn}</div>'))
    if verdict.latency_ms:
        note = "Engine time of one answer: 10 %, 50 %, 90 % and 99 %, ms."
        parts.append(_section("Latency", note, _latency(verdict)))
    parts.append(_section("Checks", "", _checks(verdict)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"{''.join(parts)}</body></html>\n"
    )


def _section(title: str, note: str, content: str) -> str:
    return f'<section><h2>{title}</h2><p class="soft">{note}</p>{content}</section>'


def _facts(verdict: Verdict) -> str:
    plain = {key: value for key, value in verdict.facts.items() if isinstance(value, str | int | float)}
    told = ", ".join(f"{key} {value}" for key, value in plain.items())
    return f"{verdict.made.isoformat(timespec='seconds')}; {told}" if told else verdict.made.isoformat()


def _note(*, relative: bool) -> str:
    unit = "in per cent of the champion's mean" if relative else "in the measure's own unit"
    return (
        f"Candidate less champion, {unit}, with 95 % intervals; right of the line is better. The red mark is the "
        "margin; grey ones have too little data to be held to it."
    )


def _intervals(found: Sequence[Comparison]) -> str:
    """One line a comparison: interval, estimate, margin."""
    scale = 100.0 if found[0].relative else 1.0
    ends = [
        abs(value) * scale
        for one in found
        for value in (one.difference.value, one.difference.low, one.difference.high, one.margin)
        if math.isfinite(value)
    ]
    # one wild slice must not flatten the others
    reach = min(max(ends, default=1.0), 4 * max((one.margin * scale for one in found), default=1.0)) or 1.0
    height = _LINE * len(found) + 34

    def x(value: float) -> float:
        share = (max(-reach, min(reach, value)) + reach) / (2 * reach)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    bottom = height - 26
    parts = [f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{bottom}"/>']
    for tick in (-reach, -reach / 2, 0.0, reach / 2, reach):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:+.3g}</text>')
    for place, one in enumerate(found):
        y, shown = _LINE * place + _LINE / 2, one.difference
        name = one.measure if one.group == "all" else f"{one.measure}: {one.group}"
        kind = "a" if one.decisive or one.group == "all" else "zero"
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<line class="mark" x1="{x(-one.margin * scale):.1f}" x2="{x(-one.margin * scale):.1f}" '
            f'y1="{y - 9:.1f}" y2="{y + 9:.1f}"/>'
        )
        parts.append(
            f'<line class="{kind}" stroke-width="2" x1="{x(shown.low * scale):.1f}" x2="{x(shown.high * scale):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        if math.isfinite(shown.value):
            parts.append(f'<circle class="{kind}" cx="{x(shown.value * scale):.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{y + 4:.1f}">{shown.value * scale:+.3g} n={shown.items}</text>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _reliability(curves: Sequence[Curve]) -> str:
    """One head's curves in a square from 0 to 1."""
    low, size = 34, _SIDE - 44

    def at(x: float, y: float) -> str:
        return f"{low + x * size:.1f},{8 + (1 - y) * size:.1f}"

    parts = [f'<polyline class="zero curve" points="{at(0, 0)} {at(1, 1)}"/>']
    for tick in (0.0, 0.5, 1.0):
        parts.append(f'<polyline class="grid" points="{at(0, tick)} {at(1, tick)}"/>')
        parts.append(f'<text x="{low - 6}" y="{12 + (1 - tick) * size:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{low + tick * size:.1f}" y="{size + 24}" text-anchor="middle">{tick:g}</text>')
    for curve, kind in zip(curves, ("a", "b"), strict=False):
        points = " ".join(at(x, y) for x, y in zip(curve.predicted, curve.happened, strict=True))
        parts.append(f'<polyline class="{kind} curve" style="fill:none" points="{points}"/>')
    told = ", ".join(f"{curve.version} {curve.error:.3f}" for curve in curves)
    return (
        f"<div><b>{escape(curves[0].head)}</b> <span class=soft>error: {escape(told)}</span>"
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" role="img">{"".join(parts)}</svg></div>'
    )


def _latency(verdict: Verdict) -> str:
    """A bar from 10 % to 90 % with the median in it and a tick at 99 %, for each version."""
    most = max(values[3] for values in verdict.latency_ms.values()) or 1.0
    height = _LINE * len(verdict.latency_ms) + 30

    def x(value: float) -> float:
        return _LEFT + value / most * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for place, (name, (low, middle, high, highest)) in enumerate(verdict.latency_ms.items()):
        y, kind = _LINE * place + _LINE / 2, "ab"[place % 2]
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect class="{kind}" x="{x(low):.1f}" y="{y - 6:.1f}" width="{x(high) - x(low):.1f}" height="12"/>'
        )
        parts += [
            f'<line class="zero" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}"/>'
            for value in (middle, highest)
        ]
        parts.append(f'<text x="{_WIDTH - _RIGHT + 10}" y="{y + 4:.1f}">{middle:.2f} ms</text>')
    parts += [
        f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:.2f}</text>'
        for tick in (0.0, most / 2, most)
    ]
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _checks(verdict: Verdict) -> str:
    rows = []
    for check in verdict.checks:
        word = "passed" if check.passed else ("failed" if check.decides else "told")
        kind = "bad" if word == "failed" else ("good" if word == "passed" else "soft")
        rows.append(
            f'<tr><td>{escape(check.name)}</td><td class="{kind}">{word}</td><td>{_figure(check.measured)}</td>'
            f"<td>{_figure(check.bound)}</td><td>{escape(check.text)}</td></tr>"
        )
    return (
        '<div class="scroll"><table><tr><th>check</th><th></th><th>measured</th><th>bound</th><th>in words</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _figure(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
