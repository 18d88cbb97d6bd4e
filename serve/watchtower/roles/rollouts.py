"""The role that decides rollouts: it reads what was told of their answers, and takes the steps that this allows.

Of pages it is told what was shown and played, of bitrate policies which sessions asked and how they ended. A step is a
change of the plan as any other, logged with its evidence. What an operator changes meanwhile stands: a change follows
the revision that was judged, or is not made. A model of whose answers nothing is told (quality, detectors) is rolled
back by the Watchtower's word alone, and promoted by people.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

import orjson

from serve.rollout import board as rollouts
from serve.rollout.decisions import DRIFT, Decision, Limits
from serve.rollout.exposures import FIELD, STREAM, read_exposure
from serve.rollout.plans import RolloutPlan, next_stage
from serve.rollout.session_log import SessionLog
from serve.rollout.session_trials import KIND as SESSION_KIND
from serve.rollout.session_trials import SESSION_LIMITS, SessionTrial
from serve.rollout.trials import STATUS_TTL_S, Trial
from serve.watchtower import board, health
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import beginning_anew, place_of, read_state, state_command, store_ms
from serve.watchtower.leases import Lease, Leases

LOOK_MS: Final = 1_000
DRAIN_S: Final = 0.5
"""The longest that a step reads what was told; what is left waits for the next."""
STATUS_MS: Final = 5_000
POLICIES: Final = frozenset({"bitrate"})
"""Models that are judged by what became of sessions."""
_ENTRIES: Final = 2_000
_BY: Final = "playhead"

_log = logging.getLogger(__name__)


class RolloutRole:
    """Decides the rollouts of all models.

    Args:
        store: where plans and exposures are.
        leases: of the replica.
        lease: of this role.
        limits: what a rollout of pages may cost; None: as by default.
        session_limits: what one of a bitrate policy may; None: as by default, but a stage lasts as long as of pages.
        policies: models that are judged by what became of sessions.
    """

    def __init__(
        self,
        store: Store,
        leases: Leases,
        lease: Lease,
        limits: Limits | None = None,
        session_limits: Limits | None = None,
        policies: frozenset[str] = POLICIES,
    ) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._limits = limits or Limits()
        self._session_limits = session_limits or replace(SESSION_LIMITS, least_s=self._limits.least_s)
        self._policies = policies
        self._trials: dict[str, Trial | SessionTrial] = {}
        self._looked_ms = store_ms(store)
        self._position = f"{self._looked_ms}-0"  # what was shown before nobody asked
        self._is_entry = False
        self._is_behind = False
        self._begins = 0
        self._told_ms: dict[str, int] = {}
        self._sessions = SessionLog(store, self._position)
        self._reads_sessions: bool | None = None  # whether a role before did is not known
        with beginning_anew(board.ROLLOUT_ROLE):
            state = read_state(store, board.ROLLOUT_ROLE)
            if state is not None:
                self._trials = {model: _restored(one) for model, one in state["trials"].items()}
                self._sessions.position = str(state.get("asked", self._position))
                self._position = str(state["position"])
                self._is_entry = bool(state.get("is_entry", False))

    def step(self) -> bool:
        """Take in what was told in the last second, and decide."""
        now_ms = store_ms(self._store)
        if now_ms - self._looked_ms < LOOK_MS:
            return False
        seconds, self._looked_ms = (now_ms - self._looked_ms) / 1000, now_ms
        plans = rollouts.read_plans(self._store)
        tried = {model: plan for model, plan in plans.items() if plan.challenger is not None}
        trials = {model: self._trial(plan) for model, plan in tried.items()}
        ended = [trial for model, trial in self._trials.items() if trials.get(model) is not trial]
        commands: list[list[Any]] = [["UNLINK", key] for trial in ended for key in trial.seen_keys()]
        commands += [["DEL", rollouts.status_key(model)] for model in self._trials if model not in trials]
        self._trials = trials
        self._follow_sessions(now_ms)
        if not tried:
            self._position, self._is_entry, self._is_behind = f"{now_ms}-0", False, False
            if commands:
                self._leases.commit(self._lease, [*commands, self._state_command()])
            return False
        self._drain()
        known = self._health(now_ms)
        for model, plan in tried.items():
            suspicion = _suspicion(known, plan)
            decision = trials[model].decide(seconds, is_drifting=bool(suspicion))
            if now_ms - self._told_ms.get(model, 0) >= STATUS_MS:
                self._told_ms[model] = now_ms
                status = _status(plan, trials[model], decision, suspicion, now_ms)
                commands.append(["SET", rollouts.status_key(model), orjson.dumps(status), "EX", STATUS_TTL_S])
            self._act(plan, decision, suspicion)
        self._leases.commit(self._lease, [*commands, self._state_command()])
        return self._is_behind

    def _trial(self, plan: RolloutPlan) -> Trial | SessionTrial:
        """The trial of a plan: the one that goes on, or another."""
        known = self._trials.get(plan.model)
        if known is not None and known.is_of(plan):
            return known
        if plan.model not in self._policies:
            return Trial(plan, self._limits)
        before = known.usual if isinstance(known, SessionTrial) and known.salt == plan.salt else None
        return SessionTrial(plan, self._session_limits, before)

    def _follow_sessions(self, now_ms: int) -> None:
        """Have sessions told for as long as a trial needs them."""
        reads = any(isinstance(trial, SessionTrial) for trial in self._trials.values())
        if reads and not self._reads_sessions:
            self._sessions.begin()
        elif not reads and self._reads_sessions is not False:
            self._sessions.end(f"{now_ms}-0")
        elif not reads:
            self._sessions.position = f"{now_ms}-0"
        self._reads_sessions = reads

    def _state_command(self) -> list[Any]:
        return state_command(board.ROLLOUT_ROLE, {
            "trials": {model: trial.state() for model, trial in self._trials.items()}, "position": self._position,
            "is_entry": self._is_entry, "asked": self._sessions.position,
        })  # fmt: skip

    def _drain(self) -> None:
        """Take in what was told since, for DRAIN_S at most.

        Exposures and sessions take turns at coming first: where there is more than can be read, each log has the whole
        time every other step, and one read at least in those between.
        """
        first: Any = self._store.xrange(STREAM, count=1)
        if self._is_entry and first and place_of(first[0][0]) > place_of(self._position.encode()):
            _log.warning("rollouts: exposures were lost: %s was read last, %s is the oldest that is kept",
                         self._position, first[0][0].decode())  # fmt: skip
        until_s = time.monotonic() + DRAIN_S
        logs = (self._drain_exposures, self._drain_sessions)
        first, self._begins = self._begins, 1 - self._begins
        has_more = [drain(until_s) for drain in (logs[first], logs[1 - first])]
        was_behind, self._is_behind = self._is_behind, any(has_more)
        if self._is_behind and not was_behind:
            _log.warning("rollouts: more exposures are told, or sessions, than %g s a second are enough to read; at %s",
                         DRAIN_S, self._position)  # fmt: skip
        elif was_behind and not self._is_behind:
            _log.info("rollouts: all exposures and sessions are read again")

    def _drain_exposures(self, until_s: float) -> bool:
        """Take in exposures, at least once; whether more wait."""
        while True:
            count, exposures = self._exposures()
            for trial in self._trials.values():
                if isinstance(trial, Trial):
                    trial.take(self._store, exposures)
            if count < _ENTRIES:
                return False
            if time.monotonic() >= until_s:
                return True

    def _drain_sessions(self, until_s: float) -> bool:
        """Take in sessions that asked, and those that are over, at least once; whether more wait."""
        trials = [trial for trial in self._trials.values() if isinstance(trial, SessionTrial)]
        more = bool(trials)
        while more:
            asked, over, more = self._sessions.read()
            for trial in trials:
                trial.ask(self._store, asked)
                trial.take(self._store, over)
            if time.monotonic() >= until_s:
                break
        return more

    def _exposures(self) -> tuple[int, list[dict[str, Any]]]:
        """The next entries: how many there were, and what they say."""
        answer: Any = self._store.xread({STREAM: self._position}, count=_ENTRIES)
        entries = answer[0][1] if answer else []
        exposures = []
        for position, fields in entries:
            self._position, self._is_entry = position.decode(), True
            try:
                exposures.append(read_exposure(fields[FIELD]))
            except (KeyError, ValueError) as error:
                _log.warning("rollouts: an entry of the exposures that is none was left out: %s", error)
        return len(entries), exposures

    def _health(self, now_ms: int) -> health.Health | None:
        """What the Watchtower says of now, if anything."""
        try:
            known = health.read_health(self._store)
        except ValueError:
            return None
        return None if known is None or known.is_stale(now_ms) else known

    def _act(self, plan: RolloutPlan, decision: Decision, suspicion: str) -> None:
        now_ms = store_ms(self._store)
        reason = f"{DRIFT}: {suspicion}" if decision.metric == DRIFT else decision.reason
        if decision.action == "roll_back":
            self._change(plan.rolled_back(now_ms), "rollback", reason, decision)
        elif decision.action == "advance" and not plan.paused:
            share = next_stage(plan.share)
            after = plan.promoted(now_ms) if share is None else plan.shared(share, now_ms)
            self._change(after, "promote", reason, decision)

    def _change(self, plan: RolloutPlan, action: str, reason: str, decision: Decision) -> None:
        change = {"action": action, "by": _BY, "reason": reason, "evidence": decision.fields()}
        made: Any = self._store.eval(*rollouts.change_arguments(plan, change))
        if made:
            level = logging.WARNING if action == "rollback" else logging.INFO
            _log.log(level, "rollout of %s: %s to %s at %g: %s", plan.model, action,
                     plan.challenger or plan.champion, plan.share, reason)  # fmt: skip


def _suspicion(known: health.Health | None, plan: RolloutPlan) -> str:
    """What the Watchtower has against the challenger since the rollout began, and not against the champion."""
    if known is None:
        return ""
    challenger, champion = (known.version(plan.model, version or "") for version in (plan.challenger, plan.champion))
    if challenger is None or (champion is not None and champion.status == "suspect"):
        return ""
    begun = [one.signal for one in challenger.readings if one.since_ts is not None and one.since_ts >= plan.started_ts]
    reasons = {reason.partition(":")[0]: reason for reason in challenger.reasons}
    return "; ".join(reasons.get(signal, signal) for signal in begun)


def _restored(state: Mapping[str, Any]) -> Trial | SessionTrial:
    return SessionTrial.from_state(state) if state.get("kind") == SESSION_KIND else Trial.from_state(state)


def _status(
    plan: RolloutPlan, trial: Trial | SessionTrial, decision: Decision, suspicion: str, now_ms: int
) -> Mapping[str, Any]:
    """What a rollout waits for, for whoever asks."""
    told = {"ts": now_ms, "model": plan.model, "challenger": plan.challenger, "paused": plan.paused}
    evidence = [asdict(one) for one in decision.evidence or trial.judge.evidence()]
    return {
        **told, "suspicion": suspicion, **decision.fields(), "share": plan.share, "evidence": evidence,
        "beside": trial.told(),
    }  # fmt: skip
