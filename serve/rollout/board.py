"""Plans in Redis: where all replicas read them, and the one way to change one.

playhead:rollout:plan:MODEL   the plan: JSON
playhead:rollout:models       models that ever had one, a set
playhead:rollout:status:MODEL what the judge of a rollout that goes on says of it, JSON; see serve.rollout.decisions
playhead:rollout:log          each change with who made it and why, a stream

A change names the revision that it follows, so of two at once only one is made. A gateway that finds no plan where it
knows one puts it back: a store that was lost is told what went on.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import hiredis
import orjson
import redis

from features.layout import command
from features.link import StoreLink
from serve.rollout.plans import RolloutPlan

LOG: Final = "playhead:rollout:log"
MODELS: Final = "playhead:rollout:models"
CHANGE: Final = b"change"
"""Field of the log's entries."""

MOST_LOGGED: Final = 10_000

_log = logging.getLogger(__name__)

CHANGE_SCRIPT: Final = """
-- Change a plan, if it still is of the revision that the change follows, and log the change.
-- KEYS: 1 the plan, 2 the log, 3 the models. ARGV: 1 that revision (0: no plan), 2 the plan, 3 the change, 4 most that
--       are logged, 5 the model.
-- Returns 1, or 0 where another change came first: then nothing was done.
local known = redis.call('GET', KEYS[1])
local revision = 0
if known then revision = cjson.decode(known)['revision'] end
if revision ~= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'change', ARGV[3])
redis.call('SADD', KEYS[3], ARGV[5])
return 1
"""


def plan_key(model: str) -> str:
    """Key of a model's plan."""
    return f"playhead:rollout:plan:{model}"


def status_key(model: str) -> str:
    """Key of what the judge says."""
    return f"playhead:rollout:status:{model}"


def change_arguments(plan: RolloutPlan, change: Mapping[str, Any], *, after: int | None = None) -> list[Any]:
    """What EVAL takes for a change; its reply is 1, or 0 where another change came first.

    Args:
        plan: as it should be.
        change: `action`, `by`, `reason` and `evidence`, to which model, time and plan are added.
        after: the revision that it follows; None: the one before its own.
    """
    told = {**change, "model": plan.model, "ts": plan.since_ts, "plan": plan.as_json()}
    follows = plan.revision - 1 if after is None else after
    return [
        CHANGE_SCRIPT, 3, plan_key(plan.model), LOG, MODELS, follows, orjson.dumps(plan.as_json()), orjson.dumps(told),
        MOST_LOGGED, plan.model,
    ]  # fmt: skip


def change_command(plan: RolloutPlan, change: Mapping[str, Any], *, after: int | None = None) -> bytes:
    """The change as a command in RESP."""
    return command("EVAL", *change_arguments(plan, change, after=after))


def load_plan(dumped: bytes) -> RolloutPlan:
    """A plan as it lies in the store.

    Raises:
        ValueError: it is something else.
    """
    return RolloutPlan.from_json(orjson.loads(dumped))


async def read_plan(link: StoreLink, model: str, deadline_s: float) -> RolloutPlan | None:
    """The plan in the store; None where there is none.

    Args:
        link: to the store.
        model: whose.
        deadline_s: longest wait, seconds.

    Raises:
        StoreUnavailable: the store does not answer.
        hiredis.ReplyError: it refuses.
        ValueError: what is there is no plan.
    """
    (dumped,) = await link.call(command("GET", plan_key(model)), deadline_s=deadline_s)
    if isinstance(dumped, hiredis.ReplyError):
        raise dumped
    return None if dumped is None else load_plan(dumped)


def read_plans(store: redis.Redis) -> dict[str, RolloutPlan]:
    """The plans of all models that have one, by model; one that cannot be read is left alone, with a warning.

    Args:
        store: Redis or Valkey; replies are bytes.

    Raises:
        redis.RedisError: the store does not answer.
    """
    models: Any = store.smembers(MODELS)
    plans = {}
    for model in sorted(name.decode() for name in models):
        dumped: Any = store.get(plan_key(model))
        try:
            if dumped is not None:
                plans[model] = load_plan(dumped)
        except ValueError as error:
            _log.warning("rollouts: the plan of %s is left alone: %s", model, error)
    return plans


def load_changes(entries: Sequence[Any]) -> list[dict[str, Any]]:
    """Changes of the log's entries; what is none is left out."""
    changes = []
    for _, fields in entries:
        pairs = fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))
        try:
            changes.append(orjson.loads(pairs[CHANGE]))
        except (KeyError, ValueError):
            continue
    return changes
