"""What is measured online, in Redis: where the Watchtower writes it and everybody reads it.

playhead:online:MODEL          figures of each version over windows, JSON; see serve.online.tallies
playhead:drift:MODEL           whether live traffic drifts from what the champion learned, JSON; see serve.online.drift
playhead:online:page:REQUEST   a page that waits for what comes of it; see serve.online.pages

No detectors are imported here: gateways, learners and the command line read this.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson
import redis

KEPT_S: Final = 600
"""What was measured so long ago says nothing of now, and is gone: the Watchtower does not run."""

PLAY_RATE: Final = "play_rate"
QUALITY: Final = "ndcg@10"
"""Means that are watched beside the features."""

LEARNABLE: Final = frozenset({"genre", "popularity", PLAY_RATE, QUALITY})
"""Signals that a model which learned anew may mend; others tell of when, where and on what people watch."""

STEADY: Final = "steady"
DRIFTING: Final = "drifting"


def online_key(model: str) -> str:
    """Key of a model's figures."""
    return f"playhead:online:{model}"


def drift_key(model: str) -> str:
    """Key of a model's drift."""
    return f"playhead:drift:{model}"


def load_online(dumped: bytes) -> dict[str, Any]:
    """Figures as they lie in the store.

    Raises:
        ValueError: they are something else.
    """
    return _load(dumped, {"ts": int, "window_s": int, "versions": dict, "windows": list})


def load_drift(dumped: bytes) -> dict[str, Any]:
    """A drift as it lies in the store.

    Raises:
        ValueError: it is something else.
    """
    return _load(dumped, {"ts": int, "status": str, "signals": list})


def read_online(store: redis.Redis, model: str) -> dict[str, Any] | None:
    """Figures of a model's versions; None where nothing was measured for KEPT_S.

    Args:
        store: Redis or Valkey; replies are bytes.
        model: which.

    Returns:
        `ts` (UTC milliseconds), `window_s`, `versions` (version -> figures of the windows' first, as
        serve.online.tallies.VersionTally.measure has them) and `windows`, all of them.

    Raises:
        ValueError: what is there is something else.
        redis.RedisError: the store does not answer.
    """
    dumped: Any = store.get(online_key(model))
    return None if dumped is None else load_online(dumped)


def read_drift(store: redis.Redis, model: str) -> dict[str, Any] | None:
    """Whether a model's live traffic drifts; None where nothing was judged for KEPT_S.

    Args:
        store: Redis or Valkey; replies are bytes.
        model: which.

    Returns:
        `ts`, `version` (the champion whose training data is the reference), `status` (`steady` or `drifting`),
        `since_ts` (null while steady) and `signals`, as serve.online.drift.DriftWatch.told has them.

    Raises:
        ValueError: what is there is something else.
        redis.RedisError: the store does not answer.
    """
    dumped: Any = store.get(drift_key(model))
    return None if dumped is None else load_drift(dumped)


def drifting_since(store: redis.Redis, model: str) -> int | None:
    """Since when what a model's viewers like drifts, UTC milliseconds; None: it does not, or nobody judges.

    Of the signals, those of LEARNABLE count, unless traffic never was like what the model learned from: another fit to
    the same data would mend neither.

    Args:
        store: Redis or Valkey; replies are bytes.
        model: which.

    Raises:
        redis.RedisError: the store does not answer.
    """
    try:
        found = read_drift(store, model)
    except ValueError:
        return None
    times = [
        signal["since_ts"]
        for signal in (found or {}).get("signals", ())
        if signal.get("name") in LEARNABLE and signal.get("since_ts") is not None and not signal.get("from_start")
    ]
    return min(times, default=None)


def _load(dumped: bytes, kinds: Mapping[str, type]) -> dict[str, Any]:
    document = orjson.loads(dumped)
    found = document if isinstance(document, dict) else {}
    wrong = [name for name, kind in kinds.items() if type(found.get(name)) is not kind]
    if wrong:
        raise ValueError(f"no record of what is measured online: {', '.join(wrong)}")
    return found
