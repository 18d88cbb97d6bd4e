"""One session as an HTML page: throughput, rungs, buffer and stalls, chosen against optimum. Inline SVG, no scripts.

Units: x is wall time in s; y Mbit/s or s of media.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.bitrate.evaluate import Played
from training.bitrate.simulator import DEFAULT_RTT_S, Settings
from training.bitrate.traces import Trace
from training.bitrate.video import Video

Floats = NDArray[np.float64]
Points = Sequence[tuple[float, float]]

WIDTH: Final = 960
HEIGHT: Final = 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 26, 40
COLOURS: Final = ("a", "b")

STYLE: Final = """
:root { color-scheme: light dark; --ink: #16202b; --soft: #5c6b7a; --line: #dfe5eb; --page: #f7f9fb; --card: #ffffff;
  --a: #1769d2; --b: #d9822b; --net: #a9b6c2; --bad: #c62839; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf2; --soft: #94a3b3; --line: #2c3743; --page: #10161d;
  --card: #18212b; --a: #62a8ff; --b: #ffa564; --net: #51606e; --bad: #ff7482; } }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 1020px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 0 0 .2rem; } p { margin: .2rem 0 .6rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.2rem;
  margin-top: 1rem; }
.soft { color: var(--soft); } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; } .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .a { stroke: var(--a); } .b { stroke: var(--b); }
.b { stroke-dasharray: 6 3; } .net { stroke: var(--net); stroke-width: 1.5; } .stall { fill: var(--bad); opacity: .3; }
.key { display: inline-block; width: 1.4em; height: .25em; border-radius: 2px; vertical-align: middle;
  margin: 0 .4em 0 1em; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .3rem .6rem; text-align: right;
  border-bottom: 1px solid var(--line); } th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
"""


@dataclass(frozen=True)
class _Session:
    """One session over wall time: begin and end of each download, when the next began, and the buffer's course."""

    begin_s: Floats
    end_s: Floats
    next_s: Floats
    buffer: Points
    stalls: Points

    @classmethod
    def of(cls, played: Played, index: int, segment_s: float) -> Self:
        count = played.segments[index]
        delay_s, sleep_s = played.delay_s[:count, index], played.sleep_s[:count, index]
        next_s = np.cumsum(delay_s + sleep_s)
        begin_s = next_s - delay_s - sleep_s
        buffer: list[tuple[float, float]] = []
        stalls: list[tuple[float, float]] = []
        level_s = 0.0
        for k in range(count):
            end_s, stall_s = float(begin_s[k] + delay_s[k]), float(played.rebuffer_s[k, index])
            left_s = max(level_s - float(delay_s[k]), 0.0)
            buffer += [(float(begin_s[k]), level_s)]
            if stall_s > 0:
                buffer += [(end_s - stall_s, 0.0)]
                stalls += [(end_s - stall_s, end_s)]
            buffer += [(end_s, left_s), (end_s, left_s + segment_s)]
            level_s = float(played.buffer_s[k, index])
            buffer += [(float(next_s[k]), level_s)]
        return cls(begin_s, begin_s + delay_s, next_s, buffer, stalls)

    def steps(self, values: Floats) -> Points:
        """One value a segment as a line of steps, from each download's begin to the next."""
        edges = zip(self.begin_s, self.next_s, values, strict=True)
        return [(float(x), float(y)) for begin_s, next_s, y in edges for x in (begin_s, next_s)]


def _ticks(highest: float) -> list[float]:
    """About five round values from 0 to at least `highest`."""
    step = 10.0 ** math.floor(math.log10(highest / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if step * factor >= highest / 5)
    return [step * index for index in range(math.ceil(highest / step - 1e-9) + 1)]


class _Chart:
    """Axes with units, and what is drawn between them; y beyond the axis is cut off."""

    def __init__(self, x_high: float, y_high: float, unit: str) -> None:
        ticks = _ticks(max(y_high, 0.01))
        self._x_high, self._y_high = max(x_high, 1e-9), ticks[-1]
        self._parts = [f'<text x="4" y="{TOP - 14}">{escape(unit)}</text>']
        for value in ticks:
            y = self._y(value)
            self._parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in _ticks(x_high):
            if value <= x_high:
                x, y = self._x(value), HEIGHT - BOTTOM + 18
                self._parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{value:g}</text>')
        self._parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">time, s</text>')

    def _x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(value / self._x_high, 0.0), 1.0)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value / self._y_high, 1.0)

    def curve(self, points: Points, style: str) -> None:
        """A line through points."""
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        self._parts.append(f'<polyline class="curve {style}" points="{path}"/>')

    def stalls(self, spans: Points) -> None:
        """Shade the spans of time in which playback stood still."""
        for begin_s, end_s in spans:
            x, width = self._x(begin_s), max(self._x(end_s) - self._x(begin_s), 1.0)
            self._parts.append(
                f'<rect class="stall" x="{x:.1f}" width="{width:.1f}" y="{TOP}" height="{HEIGHT - TOP - BOTTOM}">'
                f"<title>stalled {end_s - begin_s:.2f} s</title></rect>"
            )

    def svg(self, name: str) -> str:
        """The chart."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{"".join(self._parts)}</svg>'
        )


def _network(trace: Trace, session: _Session, rtt_s: float) -> Points:
    """The trace over wall time, in Mbit/s, stretched to where each download ended: round trips stop the trace."""
    wall_s = np.append(0.0, session.next_s)
    point_s = np.maximum.accumulate(wall_s - rtt_s * np.arange(len(wall_s)))
    span_s = float(trace.times_s[-1])
    rounds = math.ceil(point_s[-1] / span_s)
    edges_s = np.concatenate([trace.times_s[:-1] + span_s * turn for turn in range(rounds)] + [[span_s * rounds]])
    mbps = np.tile(trace.kbps[1:], rounds) / 1000
    keep = edges_s[:-1] <= point_s[-1]
    begins, ends = (np.interp(edges, point_s, wall_s) for edges in (edges_s[:-1][keep], edges_s[1:][keep]))
    rows = zip(begins, ends, mbps[keep], strict=True)
    return [(float(x), float(y)) for begin, end, y in rows for x in (begin, end)]


def render(trace: Trace, video: Video, settings: Settings, index: int, played: Mapping[str, Played]) -> str:
    """The page's HTML.

    Args:
        trace: that the session played.
        video: likewise.
        settings: likewise.
        index: of the session in `played`.
        played: name -> what it did; the first is the policy in question, a second one is what it is compared with.
    """
    sessions = {name: _Session.of(one, index, video.segment_s) for name, one in played.items()}
    end_s = max(float(session.next_s[-1]) for session in sessions.values())
    (name, chosen), (first, session) = next(iter(played.items())), next(iter(sessions.items()))
    count = chosen.segments[index]
    delay_s, rungs = chosen.delay_s[:count, index], chosen.rung[:count, index]
    measured = video.segment_bytes[np.arange(count), rungs] / 125_000 / delay_s
    rtt_s = settings.rtt_s if settings.rtt_s is not None else trace.rtt_s or DEFAULT_RTT_S
    network = _network(trace, session, rtt_s)
    top_mbps = float(video.rungs_kbps[-1]) / 1000
    typical = float(np.quantile([y for _, y in network], 0.95))

    throughput = _Chart(end_s, max(float(measured.max()), min(typical, 3 * top_mbps)), "Mbit/s")
    ladder, buffer = _Chart(end_s, top_mbps, "Mbit/s"), _Chart(end_s, _highest(sessions), "s")
    for chart in (throughput, ladder, buffer):
        chart.stalls(session.stalls)
    throughput.curve(network, "net")
    throughput.curve(session.steps(measured), "a")
    rows: list[str] = []
    for (title, one), colour in reversed(list(zip(played.items(), COLOURS, strict=False))):
        line = sessions[title]
        fetched_mbps = video.rungs_kbps[one.rung[: one.segments[index], index]] / 1000
        ladder.curve(line.steps(fetched_mbps), colour)
        buffer.curve(line.buffer, colour)
        figures = (
            f"{one.values[index]:.4f}", f"{fetched_mbps.mean():.3f}", f"{one.counted(one.rebuffer_s)[index]:.2f}",
            str(one.switches[index]),
        )  # fmt: skip
        rows.insert(0, f"<tr><td>{escape(title)}</td>{''.join(f'<td>{figure}</td>' for figure in figures)}</tr>")
    keys = "".join(
        f'<span class="key" style="background:var(--{colour})"></span>{escape(title)}'
        for title, colour in zip(played, COLOURS, strict=False)
    )
    stalls = f'<span class="key" style="background:var(--bad)"></span>{escape(first)} stalls'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(trace.name)}: {escape(name)}</title><style>{STYLE}</style></head><body>
<h1>{escape(trace.name)}</h1>
<p class="soft">{escape(video.name)}, {count} segments of {video.segment_s:g} s, at most {settings.max_buffer_s:g} s
buffered.</p>
<section><table><thead><tr><th>policy</th><th>QoE a segment</th><th>Mbit/s</th><th>rebuffering, s</th>
<th>changes of rung</th></tr></thead><tbody>{"".join(rows)}</tbody></table>
<p class="soft">All from the second segment on; Mbit/s is the mean nominal bitrate of the whole session.</p></section>
<section><h2>Throughput</h2><p class="soft"><span class="key" style="background:var(--net)"></span>network
<span class="key" style="background:var(--a)"></span>measured by {escape(first)}, a step for each download{stalls}</p>
{throughput.svg("Throughput over time")}</section>
<section><h2>Rungs fetched</h2><p class="soft">{keys}{stalls}</p>{ladder.svg("Bitrate of the rung over time")}</section>
<section><h2>Buffer</h2><p class="soft">{keys}{stalls}</p>{buffer.svg("Buffer over time")}</section>
</body></html>
"""


def _highest(sessions: Mapping[str, _Session]) -> float:
    return max(level_s for session in sessions.values() for _, level_s in session.buffer)
