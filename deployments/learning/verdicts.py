"""Verdicts of gates, told where those who begin a rollout look."""

import redis

from serve.clock import now_ms
from serve.rollout.verdicts import GateVerdict, verdict_arguments
from serve.watchtower.board import Store
from training.gates.verdict import Verdict

_TIMEOUT_S = 2.0


def in_short(verdict: Verdict) -> GateVerdict:
    """What a rollout needs to know of a verdict."""
    return GateVerdict(
        model=verdict.model, version=verdict.candidate, against=verdict.champion, passed=verdict.passed, ts=now_ms(),
        failed=tuple(check.name for check in verdict.failed),
    )  # fmt: skip


def tell(verdict: Verdict, store: Store) -> None:
    """Tell a verdict.

    Raises:
        redis.RedisError: the store does not answer.
    """
    store.execute_command(*verdict_arguments(in_short(verdict)))  # type: ignore[no-untyped-call]


def tell_if_up(verdict: Verdict, redis_url: str) -> bool:
    """Tell a verdict to the store of a running Playhead; whether it could be told."""
    try:
        with Store.from_url(redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as store:
            tell(verdict, store)
    except (redis.RedisError, OSError):
        return False
    return True
