"""A run as one HTML page: self-contained, inline SVG, no scripts, readable in light and dark.

Units: x of the percentile curve is the percentile on a scale of nines, of the time chart seconds; y is milliseconds.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from loadtests.client import Outcome

if TYPE_CHECKING:
    from loadtests.report import Report

WIDTH: Final = 880
HEIGHT: Final = 320
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 40
TIME_BUCKETS: Final = 120

STYLE: Final = """
:root { color-scheme: light dark; --ink: #16202b; --soft: #5c6b7a; --line: #dfe5eb; --page: #f7f9fb; --card: #ffffff;
  --a: #1769d2; --b: #e0762b; --c: #a23ac4; --bad: #c62839; --good: #1b7f4b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf2; --soft: #94a3b3; --line: #2c3743; --page: #10161d;
  --card: #18212b; --a: #62a8ff; --b: #ffa564; --c: #d58cf0; --bad: #ff7482; --good: #5fd39a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 960px; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; letter-spacing: -.01em; } h2 { font-size: 1.1rem; margin: 0 0 .2rem; }
p { margin: .2rem 0 .8rem; } .soft { color: var(--soft); } code { font-size: .92em; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem 1.3rem; margin-top: 1.1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: .8rem; margin-top: 1.2rem; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.cards b { display: block; font-size: 1.5rem; font-weight: 650; line-height: 1.2; } .cards span { color: var(--soft); font-size: .85rem; }
.verdict { border-left: 4px solid var(--good); } .verdict.bad { border-left-color: var(--bad); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; } .mark { stroke: var(--soft); stroke-dasharray: 3 4; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .a { stroke: var(--a); } .b { stroke: var(--b); } .c { stroke: var(--c); }
.dot { fill: var(--a); } .err { fill: var(--bad); }
.key { display: inline-block; width: 1.1em; height: .22em; border-radius: 2px; vertical-align: middle; margin: 0 .35em 0 .9em; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 500; font-size: .85rem; }
.scroll { overflow-x: auto; }
"""  # noqa: E501  one rule set a line reads better than wrapped rules


def _ticks(highest: float) -> list[float]:
    """About five round values from 0 to at least `highest`."""
    step = 10.0 ** math.floor(math.log10(highest / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if step * factor >= highest / 5)
    return [step * index for index in range(math.ceil(highest / step) + 1)]


class _Frame:
    """Axes of one chart: maps values to pixels and draws the grid."""

    def __init__(self, *, x_high: float, y_high: float) -> None:
        self.y_ticks = _ticks(max(y_high, 0.01))
        self.x_high, self.y_high = max(x_high, 1e-9), self.y_ticks[-1]
        self.parts: list[str] = []
        for value in self.y_ticks:
            y = self.y(value)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        self.parts.append(f'<text x="{LEFT - 8}" y="{HEIGHT - 8}" text-anchor="end">ms</text>')

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(value / self.x_high, 0.0), 1.0)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value / self.y_high, 1.0)

    def label_x(self, value: float, text: str) -> None:
        x, y = self.x(value), HEIGHT - BOTTOM + 20
        self.parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>')

    def curve(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline class="curve {colour}" points="{path}"/>')

    def svg(self, name: str) -> str:
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{"".join(self.parts)}</svg>'


def _nines(share: float) -> float:
    """Where a share of requests lies on a scale of nines: 0.9 at 1, 0.99 at 2, 0.999 at 3."""
    return -math.log10(1.0 - share)


def percentile_curve(values_ms: Sequence[float]) -> str:
    """Latency (ms) by percentile, as SVG; the x axis is stretched so that each further nine has the same room."""
    ordered = sorted(values_ms)
    count = len(ordered)
    if count == 0:
        return '<p class="soft">No request was answered.</p>'
    x_high = max(_nines(1 - 0.5 / count), 1.0)
    frame = _Frame(x_high=x_high, y_high=ordered[-1])
    for share in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999):
        if _nines(share) <= x_high:
            frame.label_x(_nines(share), f"{share * 100:.6g}%")
    points, last_x = [(0.0, ordered[0])], -1.0
    for rank, value in enumerate(ordered):
        x = _nines((rank + 0.5) / count)
        if frame.x(x) - last_x >= 1.0 or rank == count - 1:  # one point a pixel is all that can be seen
            points.append((x, value))
            last_x = frame.x(x)
    frame.curve(points, "a")
    for share in (0.5, 0.9, 0.99, 0.999):
        if _nines(share) <= x_high:
            value = ordered[min(count - 1, math.ceil(share * count) - 1)]
            x, y = frame.x(_nines(share)), frame.y(value)
            frame.parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
            frame.parts.append(f'<text x="{x - 8:.1f}" y="{y - 9:.1f}" text-anchor="end">{value:.2f}</text>')
    return frame.svg("Latency by percentile")


def latency_over_time(outcomes: Sequence[Outcome], duration_s: float) -> str:
    """p50, p99 and maximum latency (ms) over intended send time (s), and where errors fell, as SVG."""
    bucket_s = max(duration_s / TIME_BUCKETS, 0.25)
    buckets: dict[int, list[float]] = {}
    errors: dict[int, int] = {}
    for outcome in outcomes:
        index = int(outcome.at_s / bucket_s)
        if outcome.error:
            errors[index] = errors.get(index, 0) + 1
        if outcome.error in {"", "timeout"}:
            buckets.setdefault(index, []).append(outcome.latency_ms)
    rows = [((index + 0.5) * bucket_s, sorted(values)) for index, values in sorted(buckets.items())]
    frame = _Frame(x_high=duration_s, y_high=max((values[-1] for _, values in rows), default=1.0))
    for value in _ticks(duration_s):
        if value <= duration_s:
            frame.label_x(value, f"{value:g} s")
    for colour, share in (("c", 1.0), ("b", 0.99), ("a", 0.5)):
        frame.curve([(at_s, v[math.ceil(share * len(v)) - 1]) for at_s, v in rows], colour)
    for index, count in errors.items():
        x = frame.x((index + 0.5) * bucket_s)
        frame.parts.append(
            f'<circle class="err" cx="{x:.1f}" cy="{TOP}" r="{3 + min(math.log2(count), 5):.1f}">'
            f"<title>{count} errors</title></circle>"
        )
    return frame.svg("Latency over time")


def _cards(report: "Report") -> str:
    figures = [
        (f"{report.rps:,.1f}", "good answers a second"),
        (f"{report.latency.p50_ms:,.2f}", "p50 ms"),
        (f"{report.latency.p99_ms:,.2f}", "p99 ms"),
        (f"{report.latency.p999_ms:,.2f}", "p99.9 ms"),
        (f"{report.error_count:,}", f"errors of {len(report.outcomes):,}"),
        (f"{report.degraded:,}", "degraded"),
    ]
    return "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in figures)


def _rows(report: "Report") -> str:
    rows = []
    for label, (requests, failed, at) in report.by_label.items():
        figures = (at.mean_ms, at.p50_ms, at.p90_ms, at.p99_ms, at.p999_ms, at.max_ms)
        cells = "".join(f"<td>{value:,.2f}</td>" for value in figures)
        rows.append(f"<tr><td>{escape(label)}</td><td>{requests:,}</td><td>{failed:,}</td>{cells}</tr>")
    return "".join(rows)


def render(report: "Report") -> str:
    """The page's HTML."""
    values_ms = [outcome.latency_ms for outcome in report.outcomes if outcome.error in {"", "timeout"}]
    generator = report.generator
    verdict = "The generator kept up"
    if not generator.kept_up:
        verdict = "Do not trust these latencies: the generator fell behind"
    lag = generator.send_lag
    details = (
        f"Requests left {lag.p50_ms:.2f} ms late at the median and {lag.p99_ms:.2f} ms at p99 (at most "
        f"{generator.max_send_lag_ms:g} ms is accepted); the generator used {generator.cpu_share:.0%} of a core (at "
        f"most {generator.max_cpu_share:.0%})."
    )
    errors = ", ".join(f"{escape(kind)} {count:,}" for kind, count in report.errors.items()) or "none"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.scenario)}: {report.latency.p50_ms:.2f} ms p50, {report.latency.p99_ms:.2f} ms p99</title>
<style>{STYLE}</style></head><body>
<h1>{escape(report.scenario)}</h1>
<p class="soft">{len(report.outcomes):,} requests to <code>{escape(report.target)}</code> in {report.duration_s:g} s,
{report.offered_rps:,.1f} a second, as independent viewers send them (Poisson arrivals, seed {report.seed}).
{escape(report.started.strftime("%Y-%m-%d %H:%M UTC"))}</p>
<div class="cards">{_cards(report)}</div>
<section class="verdict{"" if generator.kept_up else " bad"}"><h2>{verdict}</h2><p>{details}</p></section>
<section><h2>How long viewers wait</h2>
<p class="soft">Latency by percentile, from the time at which a request was meant to leave. Each further nine has the
same room, so the tail is not hidden.</p>{percentile_curve(values_ms)}</section>
<section><h2>Over time</h2>
<p class="soft"><span class="key" style="background:var(--a)"></span>p50<span class="key" style="background:var(--b)"></span>p99
<span class="key" style="background:var(--c)"></span>maximum<span class="key" style="background:var(--bad)"></span>errors</p>
{latency_over_time(report.outcomes, report.duration_s)}</section>
<section><h2>By request</h2><div class="scroll"><table><thead><tr><th>request</th><th>requests</th><th>errors</th><th>mean ms</th>
<th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr></thead><tbody>{_rows(report)}</tbody></table></div>
<p class="soft" style="margin-top:.8rem">Errors: {errors}. Percentiles cover good answers, and timeouts with the time they
waited; quick errors are counted only.</p></section>
</body></html>
"""  # noqa: E501  markup
