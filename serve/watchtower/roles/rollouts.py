"""The role that decides rollouts: it reads what was shown and played, and takes the steps that the evidence allows.

A step is a change of the plan as any other, logged with its evidence. What an operator changes meanwhile stands: a
change follows the revision that was judged, or is not made. Models whose answers are not told as exposures (bitrate,
quality) are rolled back by the Watchtower's word alone, and promoted by people.
"""

import logging
from typing import Any, Final

from serve.rollout import board as rollouts
from serve.rollout.decisions import DRIFT, Decision, Limits
from serve.rollout.exposures import FIELD, STREAM, read_exposure
from serve.rollout.plans import RolloutPlan, next_stage
from serve.rollout.trials import Trial
from serve.watchtower import board, health
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import beginning_anew, read_state, state_command, store_ms
from serve.watchtower.leases import Lease, Leases

LOOK_MS: Final = 1_000
_ENTRIES: Final = 2_000
_BY: Final = "playhead"

_log = logging.getLogger(__name__)


class RolloutRole:
    """Decides the rollouts of all models.

    Args:
        store: where plans and exposures are.
        leases: of the replica.
        lease: of this role.
        limits: what a rollout may cost.
    """

    def __init__(self, store: Store, leases: Leases, lease: Lease, limits: Limits | None = None) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._limits = limits
        self._trials: dict[str, Trial] = {}
        self._looked_ms = store_ms(store)
        self._position = f"{self._looked_ms}-0"  # what was shown before nobody asked
        with beginning_anew(board.ROLLOUT_ROLE):
            state = read_state(store, board.ROLLOUT_ROLE)
            if state is not None:
                self._trials = {model: Trial.from_state(one) for model, one in state["trials"].items()}
                self._position = str(state["position"])

    def step(self) -> bool:
        """Take in what was told in the last second, and decide."""
        now_ms = store_ms(self._store)
        if now_ms - self._looked_ms < LOOK_MS:
            return False
        seconds, self._looked_ms = (now_ms - self._looked_ms) / 1000, now_ms
        plans = self._plans()
        tried = {model: plan for model, plan in plans.items() if plan.challenger is not None}
        if not tried:
            self._trials, self._position = {}, f"{now_ms}-0"
            return False
        known = self._health()
        exposures = self._exposures()
        for model, plan in tried.items():
            trial = self._trials.get(model)
            if trial is None or not trial.is_of(plan):
                trial = Trial(plan, self._limits)
            self._trials[model] = trial
            suspicion = _suspicion(known, plan)
            decision = trial.see(self._store, exposures, seconds, is_drifting=bool(suspicion))
            self._act(plan, decision, suspicion)
        self._trials = {model: trial for model, trial in self._trials.items() if model in tried}
        state = {"trials": {model: trial.state() for model, trial in self._trials.items()}, "position": self._position}
        self._leases.commit(self._lease, [state_command(board.ROLLOUT_ROLE, state)])
        return len(exposures) >= _ENTRIES

    def _plans(self) -> dict[str, RolloutPlan]:
        models: Any = self._store.smembers(rollouts.MODELS)
        plans = {}
        for model in sorted(name.decode() for name in models):
            dumped: Any = self._store.get(rollouts.plan_key(model))
            try:
                if dumped is not None:
                    plans[model] = rollouts.load_plan(dumped)
            except ValueError as error:
                _log.warning("rollouts: the plan of %s is left alone: %s", model, error)
        return plans

    def _exposures(self) -> list[dict[str, Any]]:
        answer: Any = self._store.xread({STREAM: self._position}, count=_ENTRIES)
        exposures = []
        for position, fields in answer[0][1] if answer else ():
            self._position = position.decode()
            try:
                exposures.append(read_exposure(fields[FIELD]))
            except (KeyError, ValueError) as error:
                _log.warning("rollouts: an entry of the exposures that is none was left out: %s", error)
        return exposures

    def _health(self) -> health.Health | None:
        dumped: Any = self._store.get(health.HEALTH)
        try:
            return None if dumped is None else health.load_health(dumped)
        except (TypeError, ValueError):
            return None

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
    """What the Watchtower has against the challenger, and not against the champion."""
    if known is None:
        return ""
    challenger, champion = (known.version(plan.model, version or "") for version in (plan.challenger, plan.champion))
    if challenger is None or challenger.status != "suspect" or (champion is not None and champion.status == "suspect"):
        return ""
    return "; ".join(challenger.reasons)
