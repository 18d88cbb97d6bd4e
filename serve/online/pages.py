"""Pages that wait for what comes of them, in the store: by far the most never get a play, and are forgotten.

playhead:online:page:REQUEST   the page's version and first titles, and what came of it: JSON, for WAIT_S; for PLAYED_S
                               once it was played, for finishes and thumbs come late

A page is written once, whoever reads it again; what came of it is written with the checkpoint of whoever counted it.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Final

import orjson

from serve.online.tallies import CUTOFF
from serve.watchtower.board import Store

WAIT_S: Final = 1_800
PLAYED_S: Final = 6 * 3_600
MOST_OUTCOMES: Final = 64
"""Outcomes of one page that count."""

_UNRANKED: Final = frozenset({"continue_watching", "my_list"})
"""Rows whose titles the viewer chose before."""

Page = dict[str, Any]
"""`model`, `version`, `titles` (first ten that were ranked), `chances` (of these), `visits`, `gap_s`, `device`,
`region`, `seen` (outcomes that were counted)."""


def page_key(request_id: str) -> str:
    """Key of a page."""
    return f"playhead:online:page:{request_id}"


def version_of(exposure: Mapping[str, Any]) -> str | None:
    """The version that a page counts for: the one that made it, or should have; None: nobody's, and nothing counts."""
    version = exposure["version"] or exposure["assigned"]
    return version if version and exposure["model"] else None


def page_of(exposure: Mapping[str, Any]) -> Page:
    """What a page that was shown is remembered by."""
    chances = iter(exposure.get("chances") or ())
    ranked: list[tuple[str, float | None]] = []
    for row, title_ids in exposure.get("rows") or ():
        for title_id in title_ids:
            chance = next(chances, None)
            if row not in _UNRANKED and len(ranked) < CUTOFF:
                ranked.append((title_id, chance))
    return {
        "model": exposure["model"], "version": version_of(exposure), "titles": [one[0] for one in ranked],
        "chances": [one[1] for one in ranked], "visits": exposure.get("visits"), "gap_s": exposure.get("gap_s"),
        "device": exposure.get("device") or "", "region": exposure.get("region") or "", "seen": [],
    }  # fmt: skip


def slots_of(exposure: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    """How many titles were shown at each rank, from 0, and all titles of the page."""
    rows = [title_ids for _, title_ids in exposure.get("rows") or ()]
    deepest = max(map(len, rows), default=0)
    return [sum(len(row) > rank for row in rows) for rank in range(deepest)], list(chain.from_iterable(rows))


def keep_pages(store: Store, pages: Mapping[str, Page]) -> None:
    """Remember pages that are not known yet.

    Args:
        store: Redis or Valkey.
        pages: request -> page.
    """
    if not pages:
        return
    with store.pipeline(transaction=False) as pipe:
        for request_id, page in pages.items():
            pipe.set(page_key(request_id), orjson.dumps(page), ex=WAIT_S, nx=True)
        pipe.execute()


def find_pages(store: Store, requests: Iterable[str]) -> dict[str, Page]:
    """Pages that are still waited for.

    Args:
        store: Redis or Valkey.
        requests: names of pages.
    """
    asked = list(dict.fromkeys(requests))
    if not asked:
        return {}
    found: Any = store.mget([page_key(request_id) for request_id in asked])
    return {request: orjson.loads(dumped) for request, dumped in zip(asked, found, strict=True) if dumped is not None}


def page_command(request_id: str, page: Page) -> list[Any]:
    """The command that writes what came of a page."""
    return ["SET", page_key(request_id), orjson.dumps(page), "EX", PLAYED_S]
