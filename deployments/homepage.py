"""A home page in the terminal: asked of the running service over HTTP, shown as rows of titles."""

import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.markup import escape

from deployments.service import ask, curl

_SHOWN_ITEMS: Final = 6
_SETTLING_TRIES: Final = 20
_SETTLING_S: Final = 0.25


def some_profile(dataset: Path) -> str | None:
    """A profile of a data set that has events: the one in the middle, by number of events, and by id among equals.

    Args:
        dataset: folder of a prepared data set.

    Returns:
        Its id; None where the data set is not there.
    """
    path = dataset / "events.parquet"
    if not path.is_file():
        return None
    import pyarrow.parquet as pq  # noqa: PLC0415

    counts = pq.read_table(path, columns=["profile_id"]).column("profile_id").value_counts().to_pylist()
    ordered = sorted((int(entry["counts"]), str(entry["values"])) for entry in counts)
    return ordered[len(ordered) // 2][1] if ordered else None


def request_of(url: str, profile_id: str) -> str:
    """The curl command that asks for a page."""
    return curl(url + _path(profile_id))


def fetch(url: str, profile_id: str) -> dict[str, Any]:
    """Ask for a page.

    Args:
        url: the service.
        profile_id: whose page.

    Raises:
        InvalidInput: the service refused the request; with its words.
        Unavailable: it does not answer.
    """
    return ask(url, _path(profile_id))


def fetch_settled(url: str, profile_id: str) -> dict[str, Any]:
    """Ask for a page as the first requests of a new service warm it up: again while it says that something was late.

    Args:
        url: the service.
        profile_id: whose page.

    Returns:
        The first page with nothing late, or the last one.
    """
    for _ in range(_SETTLING_TRIES):
        page = fetch(url, profile_id)
        if not any(reason.endswith(("_timeout", "statistics_missing")) for reason in page["degraded"]):
            break
        time.sleep(_SETTLING_S)
    return page


def page_lines(page: dict[str, Any], width: int) -> Iterator[str]:
    """A page as lines with rich's markup: a heading per row, then its first titles.

    Args:
        page: the answer of GET /v1/home.
        width: longest line, in characters.
    """
    versions = ", ".join(f"{name} {version}" for name, version in page["versions"].items())
    yield f"  [bold]Home of profile {escape(page['profile_id'])}[/]  [dim]{escape(versions)}[/]"
    if page["degraded"]:
        yield f"  [yellow]degraded: {escape(', '.join(page['degraded']))}[/]"
    for row in page["rows"]:
        names = [item["name"] for item in row["items"][:_SHOWN_ITEMS]]
        line = "  ·  ".join(names)
        line = line if len(line) <= width - 4 else line[: width - 5] + "…"
        yield f"  [cyan]{escape(row['title'])}[/]  [dim]{escape(row['reason'])}[/]"
        yield f"    {escape(line)}"


def _path(profile_id: str) -> str:
    return f"/v1/home?{urllib.parse.urlencode({'profile_id': profile_id})}"
