"""What the viewers of a demo did, as one HTML page: plays by version over time, and when what happened.

Self-contained: inline SVG, no scripts. x is seconds, y the share of pages from which something was played.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from loadtests.browsing import Visit
from loadtests.page import STYLE

WIDTH: Final = 880
HEIGHT: Final = 340
_LEFT, _RIGHT, _BOTTOM = 56, 16, 36
_ROW: Final = 13
"""Height of a row of labels."""
_LETTER: Final = 7.0
"""Width of a label's letter, at most, in the mean."""
_COLOURS: Final = ("a", "b", "c")
_FEWEST: Final = 20
"""Pages of a bucket below which a share says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that happened.

    Attributes:
        at_s: when.
        text: what.
        label: one or two words for the chart; empty: it stands in the list alone.
    """

    at_s: float
    text: str
    label: str = ""


def plays_by_version(visits: Sequence[Visit], bucket_s: float) -> dict[str, list[tuple[float, float, int]]]:
    """Share of pages that led to a play: version -> (middle of a bucket in s, share, pages), oldest first.

    Args:
        visits: what became of visits; those without a page are left out.
        bucket_s: length of a bucket.
    """
    counts: dict[tuple[str, int], list[int]] = {}
    for visit in visits:
        if visit.version:
            count = counts.setdefault((visit.version, int(visit.at_s / bucket_s)), [0, 0])
            count[0] += 1
            count[1] += visit.played
    found: dict[str, list[tuple[float, float, int]]] = {}
    for (version, place), (pages, plays) in sorted(counts.items(), key=lambda one: one[0][1]):
        found.setdefault(version, []).append(((place + 0.5) * bucket_s, plays / pages, pages))
    return found


def render(title: str, visits: Sequence[Visit], marks: Sequence[Mark], names: Mapping[str, str]) -> str:
    """The page's HTML.

    Args:
        title: heading.
        visits: of the viewers.
        marks: what happened, in order.
        names: version -> what it was.
    """
    end_s = max([visit.at_s for visit in visits] + [mark.at_s for mark in marks] + [1.0])
    series = plays_by_version(visits, max(end_s / 90, 5.0))
    failed = sum(bool(visit.error) for visit in visits)
    rows = "".join(f"<tr><td>{_clock(mark.at_s)}</td><td>{escape(mark.text)}</td></tr>" for mark in marks)
    keys = "".join(
        f'<span class="key" style="background:var(--{_colour(place)})"></span>{escape(names.get(version, ""))} '
        f"<code>{escape(version)}</code>"
        for place, version in enumerate(series)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}
td {{ text-align: left; vertical-align: top; }}</style></head><body>
<h1>{escape(title)}</h1>
<p class="soft">{len(visits):,} visits, {failed:,} of them with a failed request.</p>
<section><h2>Pages from which something was played</h2><p class="soft">{keys}</p>{_svg(series, marks, end_s)}</section>
<section><h2>What happened</h2><div class="scroll"><table><tbody>{rows}</tbody></table></div></section>
</body></html>
"""


def _svg(series: Mapping[str, Sequence[tuple[float, float, int]]], marks: Sequence[Mark], end_s: float) -> str:
    shown = {
        version: [(at_s, share) for at_s, share, pages in points if pages >= _FEWEST]
        for version, points in series.items()
    }
    highest = max([share for points in shown.values() for _, share in points] + [0.1])
    top = next(limit for limit in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if limit >= highest)
    labelled = [mark for mark in marks if mark.label]

    def x(at_s: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(max(at_s / end_s, 0.0), 1.0)

    places = label_rows([(x(mark.at_s), mark.label) for mark in labelled])
    above = 4 + _ROW * (1 + max(places, default=0))

    def y(share: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - above - _BOTTOM) * share / top

    parts = []
    for place in range(5):
        share = top * place / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for place in range(7):
        at_s = end_s * place / 6
        parts.append(f'<text x="{x(at_s):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{_clock(at_s)}</text>')
    for mark, place in zip(labelled, places, strict=True):
        at = x(mark.at_s)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{above}" y2="{HEIGHT - _BOTTOM}"/>')
        anchor = "end" if _is_left_of(at) else "start"
        parts.append(
            f'<text x="{at:.1f}" y="{_ROW * (place + 1) - 1}" text-anchor="{anchor}">{escape(mark.label)}</text>'
        )
    for place, points in enumerate(shown.values()):
        path = " ".join(f"{x(at_s):.1f},{y(share):.1f}" for at_s, share in points)
        parts.append(f'<polyline class="curve {_colour(place)}" points="{path}"/>')
        parts += [f'<circle cx="{x(at_s):.1f}" cy="{y(share):.1f}" r="2" fill="var(--{_colour(place)})"/>'
                  for at_s, share in points]  # fmt: skip
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Plays a page over time">{"".join(parts)}</svg>'


def label_rows(labels: Sequence[tuple[float, str]]) -> list[int]:
    """The row of each label, from 0, the highest: the first in which it covers no other.

    Args:
        labels: (x of the mark, text).
    """
    rows: list[list[tuple[float, float]]] = []
    found = []
    for at, text in labels:
        width = _LETTER * (len(text) + 1)
        low, high = (at - width, at) if _is_left_of(at) else (at, at + width)
        row = next((place for place, taken in enumerate(rows) if all(high <= a or b <= low for a, b in taken)), None)
        if row is None:
            row = len(rows)
            rows.append([])
        rows[row].append((low, high))
        found.append(row)
    return found


def _is_left_of(at: float) -> bool:
    """Whether a label ends at its mark, since it would end beyond the chart."""
    return at > WIDTH * 0.8


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _clock(at_s: float) -> str:
    return f"{int(at_s) // 60}:{int(at_s) % 60:02d}"
