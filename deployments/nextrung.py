"""A bitrate decision in the terminal: asked of the running service over HTTP, shown as one line."""

from typing import Any, Final

from rich.markup import escape

from deployments.service import ask, curl

SESSION: Final = {
    "segment_s": 4, "buffer_s": 12, "last_rung": 1, "throughput_kbps": [2310, 1985, 2640],
    "download_s": [1.3, 1.5, 1.1], "rungs_kbps": [300, 750, 1200, 1850, 2850, 4300],
}  # fmt: skip
"""A player in the middle of a title, on a network of some 2.2 Mbit/s."""

_PATH: Final = "/v1/bitrate"


def fetch(url: str) -> dict[str, Any]:
    """Ask which rung SESSION should fetch next.

    Args:
        url: the service.

    Raises:
        Unavailable: it does not answer.
    """
    return ask(url, _PATH, SESSION)


def request_of(url: str) -> str:
    """The curl command that asks the same."""
    return curl(url + _PATH, SESSION)


def decision_line(decision: dict[str, Any]) -> str:
    """A decision as a line with rich's markup.

    Args:
        decision: the answer of POST /v1/bitrate to one session.
    """
    versions = ", ".join(f"{name} {version}" for name, version in decision["versions"].items())
    degraded = f"  [yellow]degraded: {escape(', '.join(decision['degraded']))}[/]" if decision["degraded"] else ""
    throughput_kbps = decision["throughput_kbps"]["p50"]
    return (
        f"  [bold]Next rung with {SESSION['buffer_s']} s of buffer[/]  [dim]{escape(versions)}[/]{degraded}\n"
        f"    {decision['bitrate_kbps']:g} kbit/s  ·  median throughput expected {throughput_kbps:,.0f} kbit/s"
        f"  ·  stalls with probability {decision['rebuffer_probability']:.3f}"
    )
