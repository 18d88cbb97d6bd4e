"""One plan for all gateways: one leads, by a lease in Redis, updates the plan and writes it; the others go by it.

playhead:steering:lease    who leads, for as long as it lives
playhead:steering:plan     the plan as it was written last: JSON, {"turn": ..., "plan": Steerer.state()}

    look, once a second:   leads      update the plan, and write it if the lease still is this gateway's
                           took over  go on from the stored plan, then as above
                           follows    go by the stored plan; no steps of its own
                           no answer  go on alone from what there is, once nothing was heard of who leads for a lease

What players are told is in memory all the time: nothing here is on the way of an answer. Times that decide who leads
are the store's, and how long a plan is fresh is measured on the reader's own clock, so clocks need not agree.
"""

import time
from typing import Any, Final, Protocol

import hiredis
import orjson

from features.errors import StoreUnavailable
from features.layout import command
from features.link import StoreLink
from serve.errors import InvalidInput
from serve.logs import get
from serve.metrics import Metrics
from serve.steering.pathways import Pathways
from serve.steering.steerer import Steerer

LEASE: Final = "playhead:steering:lease"
PLAN: Final = "playhead:steering:plan"

LEASE_MS: Final = 5_000
PLAN_TTL_MS: Final = 6 * 3_600_000
"""A plan that nobody wrote for so long is forgotten."""

MOST_BYTES: Final = 1 << 20
"""A larger plan is neither written nor read."""

_DEADLINE_S: Final = 1.0
_LEADS, _TOOK = b"leads", b"took"
_MOST_TURNS: Final = 1 << 53

_HOLD: Final = """
-- Renew the lease, take it where it is nobody's, or hear what is stored by whoever has it.
-- KEYS: 1 the lease, 2 the plan. ARGV: 1 this gateway, 2 the lease's length in ms, 3 most bytes of a plan.
-- Returns what this gateway does now, and the plan; its size where it is too large, -1 where it is no string.
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'leads', false}
end
if not holder then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
local does = holder and 'follows' or 'took'
local size = redis.pcall('STRLEN', KEYS[2])
if type(size) == 'table' then return {does, -1} end
if size > tonumber(ARGV[3]) then return {does, size} end
return {does, redis.call('GET', KEYS[2])}
"""

_WRITE: Final = """
-- Write the plan, if this gateway leads; 1 or 0.
-- KEYS: 1 the lease, 2 the plan. ARGV: 1 this gateway, 2 the plan, 3 how long it is kept, ms.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""

_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Stage(Protocol):
    """What goes by the plan.

    Attributes:
        config: what may be steered to.
        steerer: what answers; another one takes its place when a plan is read.
    """

    config: Pathways
    steerer: Steerer

    def look(self) -> None:
        """Update the plan by what is known of outages, and take the steps that are due."""
        ...


class SharedPlan:
    """The plan of one gateway among others. Belongs to one event loop.

    Args:
        stage: what goes by it.
        redis_url: where the store is.
        owner: names this gateway among all.
        metrics: where it is shown who leads, and where failures are counted, as stage `steering`.
        lease_ms: how long a lease is valid that is not renewed, milliseconds; several looks.
    """

    def __init__(self, stage: Stage, redis_url: str, owner: str, metrics: Metrics, lease_ms: int = LEASE_MS) -> None:
        self._stage = stage
        self._link = StoreLink(redis_url)
        self._owner = owner
        self._metrics = metrics
        self._lease_ms = lease_ms
        self._log = get("steering")
        self._leads = False
        self._turn = 0
        self._last: bytes | None = None
        """The plan that was read or written last, with its turn."""
        self._fresh_s = float("-inf")
        """When a plan of another gateway's was read that was new, by the monotonic clock."""
        self._refused = False

    @property
    def leads(self) -> bool:
        """Whether this gateway led when it looked last."""
        return self._leads

    async def look(self) -> None:
        """Lead, or go by the plan of whoever does; call it about once a second, and before the first answer."""
        does, stored = await self._call(_HOLD, self._lease_ms, MOST_BYTES) or (None, None)
        if does in {_LEADS, _TOOK}:
            await self._lead(stored)
            return
        self._says(leads=False)
        if self._read(stored, at_least=0):
            self._fresh_s = time.monotonic()
        if time.monotonic() - self._fresh_s >= self._lease_ms / 1000:
            self._stage.look()

    async def close(self) -> None:
        """Let another gateway lead at once, and close the connection."""
        if self._leads:
            await self._call(_RELEASE)
        self._says(leads=False)
        await self._link.close()

    async def _lead(self, stored: bytes | int | None) -> None:
        """Update the plan and write it.

        Args:
            stored: what was there when the lead was taken, if it was now. Where others led in the meantime it is gone
                on from; where the store lost what was written last, what is known here stands.
        """
        self._read(stored, at_least=self._turn)
        self._says(leads=True)
        self._stage.look()
        self._turn += 1
        state = self._stage.steerer.state()
        dumped = orjson.dumps({"turn": self._turn, "plan": state}, option=orjson.OPT_NON_STR_KEYS)
        if len(dumped) > MOST_BYTES:
            self._refuse(f"a plan of {len(dumped)} bytes is not written")
            return
        self._last = dumped
        if await self._call(_WRITE, dumped, PLAN_TTL_MS):
            self._refused = False
        else:
            self._says(leads=False)  # it came too late, or the store is gone

    def _read(self, stored: bytes | int | None, at_least: int) -> bool:
        """Go by a stored plan; whether that was done.

        Args:
            stored: the plan; its size where it cannot be read.
            at_least: its turn, not to be older than what is known here.
        """
        if stored is None or stored == self._last:
            return False
        if isinstance(stored, int):
            self._refuse(f"a plan of {stored} bytes (-1: no string), expected at most {MOST_BYTES}")
            return False
        try:
            turn, steerer = self._parsed(stored)
        except (InvalidInput, KeyError, OverflowError, TypeError, ValueError) as error:
            self._refuse(f"{type(error).__name__}: {error}"[:300])
            return False
        self._refused = False
        if turn < at_least:
            return False
        self._turn, self._last = turn, stored
        self._stage.steerer = steerer
        return True

    def _parsed(self, stored: bytes) -> tuple[int, Steerer]:
        """The turn and the plan.

        Raises:
            InvalidInput, KeyError, OverflowError, TypeError, ValueError: it cannot be read.
        """
        document = orjson.loads(stored)
        turn = int(document["turn"])
        if not 0 <= turn < _MOST_TURNS:
            raise ValueError(f"turn {turn}, expected 0 to {_MOST_TURNS}")
        return turn, Steerer.from_state(self._stage.config, document["plan"])

    def _refuse(self, why: str) -> None:
        """Say once that the stored plan, or this one, cannot be shared."""
        if not self._refused:
            self._log.error("a plan cannot be shared", extra={"error": why})
        self._refused = True

    def _says(self, *, leads: bool) -> None:
        """Note who leads, and tell of a change."""
        if leads != self._leads:
            self._log.info("leads" if leads else "leads no more", extra={"gateway": self._owner, "turn": self._turn})
        self._leads = leads
        self._metrics.steering_leads(leads=leads)

    async def _call(self, script: str, *arguments: bytes | int) -> Any:
        """Run a script; its reply, None where the store does not answer or refuses."""
        payload = command("EVAL", script, 2, LEASE, PLAN, self._owner, *arguments)
        try:
            (reply,) = await self._link.call(payload, deadline_s=_DEADLINE_S)
            if isinstance(reply, hiredis.ReplyError):
                raise reply
        except (StoreUnavailable, hiredis.ReplyError) as error:
            self._metrics.stage_failure("steering", type(error).__name__)
            return None
        return reply
