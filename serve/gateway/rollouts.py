"""Routes for operators who change which version of a model answers: promote, roll back, pause, shadow; and the record.

A change is made in the store, where every replica reads it within a second or two; nothing here loads a model. It needs
the operator's token, which is another one than the callers' of the service.
"""

import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from features.layout import command
from features.settings import Settings
from serve.artifacts import MANIFEST, ModelName, Version
from serve.clock import now_ms
from serve.errors import InvalidInput, NotFound, Unavailable
from serve.gateway.entrance import context_of
from serve.gateway.errors import Conflict, Forbidden, Unauthorized, Words, responses
from serve.gateway.operations import PRINTED, ModelOperations
from serve.gateway.stages import Stages
from serve.learning import STEPS, load_steps
from serve.rollout import board
from serve.rollout.comparisons import compared_key, read_compared
from serve.rollout.plans import STAGES, RolloutPlan, next_stage
from serve.rollout.verdicts import GateVerdict, verdict_key
from serve.watchtower.beside import read_beside
from serve.watchtower.settings import MODEL as DETECTORS

OPERATOR_VARIABLE: Final = "PLAYHEAD_OPERATOR_TOKEN"
OPERATOR_HEADER: Final = "Playhead-Operator-Token"

_TRIES: Final = 3
_READ: Final = 1_000
"""Changes that are looked through for one model's."""

_HEADER: Final = {
    "name": OPERATOR_HEADER, "in": "header", "required": True, "schema": {"type": "string"},
    "description": f"The operator's token, as the service has it in {OPERATOR_VARIABLE}.",
}  # fmt: skip

By = Annotated[str, Field(min_length=1, max_length=64, pattern=PRINTED, description="Who asks, for the record.")]
Reason = Annotated[str, Field(max_length=500, pattern=PRINTED, description="Why, for the record.")]


class Promotion(BaseModel):
    """Body of POST /v1/models/{name}/promote.

    Attributes:
        version: whose rollout begins; may be left out while one goes on.
        share: of profiles or sessions that it answers from now on; 1: all. Left out: the first stage, or the next; to
            be able to ask again after no answer, name it.
        force: begin although the version's gate did not pass against the champion, or was not asked.
        by: who asks.
        reason: why.
    """

    model_config = ConfigDict(extra="forbid")

    version: Version | None = None
    share: Annotated[float | None, Field(gt=0, le=1)] = None
    force: bool = False
    by: By = "operator"
    reason: Reason = ""


class RollBack(BaseModel):
    """Body of POST /v1/models/{name}/rollback.

    Attributes:
        version: that should not answer any more: the challenger, or the champion; left out: the challenger.
        by: who asks.
        reason: why.
    """

    model_config = ConfigDict(extra="forbid")

    version: Version | None = None
    by: By = "operator"
    reason: Reason = ""


class Pause(BaseModel):
    """Body of POST /v1/models/{name}/pause.

    Attributes:
        paused: whether only people change the share from now on; false lets the rollout go on by itself.
        by: who asks.
        reason: why.
    """

    model_config = ConfigDict(extra="forbid")

    paused: bool = True
    by: By = "operator"
    reason: Reason = ""


class Shadow(BaseModel):
    """Body of POST /v1/models/{name}/shadow.

    Attributes:
        version: which works beside the answers from now on; null: none.
        by: who asks.
        reason: why.
    """

    model_config = ConfigDict(extra="forbid")

    version: Version | None
    by: By = "operator"
    reason: Reason = ""


class Plan(BaseModel):
    """Who answers: see serve.rollout.plans.RolloutPlan. Times UTC milliseconds.

    Attributes:
        request_id: names this answer.
        model: the model.
        revision: counts changes.
        champion: answers, but for the challenger's share; null: there is none yet.
        previous: the champion before.
        challenger: version that is tried; null: none is.
        share: of the challenger, 0 to 1.
        shadow: version that works beside the answers; null: none does.
        paused: whether only people change the share.
        since_ts: when this revision began.
        started_ts: when the rollout began; 0 where none goes on.
    """

    request_id: str
    model: str
    revision: int
    champion: str | None
    previous: str | None
    challenger: str | None
    share: float
    shadow: str | None
    paused: bool
    since_ts: int
    started_ts: int


class Rollout(BaseModel):
    """Answer of GET /v1/models/{name}/rollout.

    Attributes:
        request_id: names this answer.
        plan: who answers.
        judged: what the judge says of a rollout that goes on (`action`, `reason`, `evidence` of each metric: see
            serve.rollout.decisions.Decision; `beside`: what decides nothing, such as bounds of latency by arm, or how
            many sessions asked and are over); null where none does, or nobody judges.
        compared: what the challenger and the shadow of the model `quality` estimated beside the champion: by version
            and class of content, with the mean of the differences, of their sizes, and the largest, in points of VMAF.
            Of `detectors`, what their settings would have called beside the champion: by version `since_ts`, `windows`,
            outages confirmed by `both`, by `champion_only` and `other_only`, `earlier_s` (the median by which these
            confirm earlier what both do), `champion_suspicions` and `other_suspicions` (what each did not confirm), and
            the newest `calls`: see serve.watchtower.beside.
    """

    request_id: str
    plan: Plan
    judged: dict[str, Any] | None
    compared: tuple[dict[str, Any], ...] = ()


class ChangesQuery(BaseModel):
    """Query of GET /v1/models/{name}/changes and /learning.

    Attributes:
        limit: the newest so many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(default=20, ge=1, le=500)


class Changes(BaseModel):
    """Answer of GET /v1/models/{name}/changes.

    Attributes:
        request_id: names this answer.
        changes: newest first; each with `action`, `by`, `reason`, `evidence`, `ts` and the `plan` that it made.
    """

    request_id: str
    changes: tuple[dict[str, Any], ...]


class Learning(BaseModel):
    """Answer of GET /v1/models/{name}/learning.

    Attributes:
        request_id: names this answer.
        steps: of its updates, newest first: the `update`, its `name`, `moment` (begun, done, failed),
            `ts`, `text`, `evidence`; see serve.learning.Step.
    """

    request_id: str
    steps: tuple[dict[str, Any], ...]


class RolloutRoutes(ModelOperations):
    """The routes.

    Args:
        settings: where the store and the models are.
        stages: which models there are.
        known: the plan of a model as this replica follows it; None where it does not.
        env: where the operator's token is.
    """

    def __init__(
        self,
        settings: Settings,
        stages: Stages,
        known: Callable[[str], RolloutPlan | None] = lambda _: None,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__(settings, stages)
        self._models = settings.models
        self._known = known
        self._token = (env.get(OPERATOR_VARIABLE) or "").encode()

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application whose route class is ModelRoute."""
        changing: dict[str, tuple[Any, str]] = {
            "promote": (self.promote, "Begin a version's rollout, give it a larger share, or make it the champion"),
            "rollback": (self.rollback, "Back to the champion, or to the one before"),
            "pause": (self.pause, "Let only people change a rollout's share, or let it go on by itself"),
            "shadow": (self.shadow, "Have a version work beside the answers"),
        }
        for name, (endpoint, summary) in changing.items():
            app.add_api_route(
                f"/v1/models/{{name}}/{name}", endpoint, methods=["POST"], response_model=Plan, tags=["operations"],
                summary=summary, responses=responses(400, 401, 403, 404, 409, 413, 415, 422, 503),
                openapi_extra={"parameters": [_HEADER]}, dependencies=[Depends(self._check_operator)],
            )  # fmt: skip
        app.add_api_route(
            "/v1/models/{name}/rollout", self.rollout, response_model=Rollout, tags=["operations"],
            summary="Who answers, and what is known of whom is tried", responses=responses(401, 404, 422, 503),
        )  # fmt: skip
        app.add_api_route(
            "/v1/models/{name}/changes", self.changes, response_model=Changes, tags=["operations"],
            summary="Who changed which version answers, and why", responses=responses(401, 404, 422, 503),
        )  # fmt: skip
        app.add_api_route(
            "/v1/models/{name}/learning", self.learning, response_model=Learning, tags=["operations"],
            summary="Updates of a model, step by step", responses=responses(401, 404, 422, 503),
        )  # fmt: skip

    async def promote(self, request: Request, name: ModelName, body: Promotion) -> Response:
        """A version's rollout begins at the first stage, or goes on to the next; after the last it is the champion."""
        version = body.version
        if version is not None and not (self._models / name / version / MANIFEST).is_file():
            raise NotFound(
                field="version", got=version, expected=f"an artifact of the model {name}",
                next_step="Publish it first; `playhead models` lists those that are here.",
            )  # fmt: skip

        verdict = None if version is None or body.force else await self._verdict(name, version)

        def promoted(plan: RolloutPlan) -> RolloutPlan:
            at_ms = now_ms()
            if plan.challenger is None:
                if version is None:
                    raise InvalidInput(
                        field="version", got=None, expected="the version whose rollout begins: none goes on",
                        next_step="Name one.",
                    )  # fmt: skip
                if not body.force and plan.champion not in {None, version}:
                    _require_gate(name, version, verdict, plan.champion)
                if version == plan.champion or body.share == 1 or plan.champion is None:
                    return plan.crowned(version, at_ms)  # which is refused where it is the champion already
                return plan.begun(version, body.share or STAGES[0], at_ms)
            if version not in {None, plan.challenger}:
                return plan.begun(str(version), body.share or STAGES[0], at_ms)  # which is refused
            share = next_stage(plan.share) if body.share is None else body.share
            return plan.promoted(at_ms) if share in {None, 1} else plan.shared(float(share or 0), at_ms)

        evidence = {"forced": True} if body.force else {}
        return await self._change(request, name, promoted, "promote", body.by, body.reason, evidence)

    async def rollback(self, request: Request, name: ModelName, body: RollBack) -> Response:
        """The challenger answers nobody any more; a champion that is named makes room for the one before."""
        return await self._change(
            request, name, lambda plan: plan.rolled_back(now_ms(), body.version), "rollback", body.by, body.reason
        )

    async def pause(self, request: Request, name: ModelName, body: Pause) -> Response:
        """The rollout stays as it is until somebody changes it; what harms is rolled back all the same."""
        action = "pause" if body.paused else "resume"
        return await self._change(
            request, name, lambda plan: plan.held(paused=body.paused, now_ms=now_ms()), action, body.by, body.reason
        )

    async def shadow(self, request: Request, name: ModelName, body: Shadow) -> Response:
        """A version makes some of the answers as well, which nobody is shown."""
        if body.version is not None and not (self._models / name / body.version / MANIFEST).is_file():
            raise NotFound(
                field="version", got=body.version, expected=f"an artifact of the model {name}",
                next_step="Publish it first.",
            )  # fmt: skip
        return await self._change(
            request, name, lambda plan: plan.shadowed(body.version, now_ms()), "shadow", body.by, body.reason
        )

    async def rollout(self, request: Request, name: ModelName) -> Response:
        """The plan, and the evidence so far."""
        self.check_known(name)
        commands = command("GET", board.plan_key(name)) + command("GET", board.status_key(name))
        dumped, status, replicas = await self.call(commands + command("HVALS", compared_key(name)), count=3)
        request_id = context_of(request).request_id
        plan = self._plan(name, dumped)
        judged = None if status is None or plan.challenger is None else orjson.loads(status)
        compared = (
            read_beside(replicas, plan.versions)
            if name == DETECTORS
            else read_compared(replicas, plan.versions, now_ms())
        )
        body = {"request_id": request_id, "plan": _shown(plan, request_id), "judged": judged, "compared": compared}
        return Response(orjson.dumps(body), media_type="application/json")

    async def changes(self, request: Request, name: ModelName, query: Annotated[ChangesQuery, Query()]) -> Response:
        """The newest changes, those that Playhead made by itself with their evidence."""
        self.check_known(name)
        (entries,) = await self.call(command("XREVRANGE", board.LOG, "+", "-", "COUNT", _READ))
        found = [change for change in board.load_changes(entries) if change.get("model") == name]
        body = {"request_id": context_of(request).request_id, "changes": found[: query.limit]}
        return Response(orjson.dumps(body), media_type="application/json")

    async def learning(self, request: Request, name: ModelName, query: Annotated[ChangesQuery, Query()]) -> Response:
        """The newest steps of the model's updates: what was trained on what, and what its gate said."""
        self.check_known(name)
        (entries,) = await self.call(command("XREVRANGE", STEPS, "+", "-", "COUNT", _READ))
        found = [step.as_json() for step in load_steps(entries) if step.model == name]
        body = {"request_id": context_of(request).request_id, "steps": found[: query.limit]}
        return Response(orjson.dumps(body), media_type="application/json")

    async def _change(
        self,
        request: Request,
        name: str,
        changed: Callable[[RolloutPlan], RolloutPlan],
        action: str,
        by: str,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
    ) -> Response:
        """Change a plan as it is in the store now; whoever changes it at the same time comes before or after."""
        self.check_known(name)
        request_id = context_of(request).request_id
        told = {
            "action": action, "by": by, "reason": reason, "evidence": dict(evidence or {}), "request_id": request_id
        }  # fmt: skip
        for _ in range(_TRIES):
            (dumped,) = await self.call(command("GET", board.plan_key(name)))
            plan = self._plan(name, dumped)
            after = changed(plan)
            follows = 0 if dumped is None else plan.revision
            (made,) = await self.call(board.change_command(after, told, after=follows))
            if made == 1:
                return Response(orjson.dumps(_shown(after, request_id)), media_type="application/json")
        raise Conflict(
            field="plan", got=Words("several changes at once"), expected="one change at a time",
            next_step="Look at GET /v1/models and try again.",
        )  # fmt: skip

    async def _verdict(self, name: str, version: str) -> GateVerdict | None:
        """What the gate said of a version; None where nobody asked it, or nobody can read the answer."""
        (dumped,) = await self.call(command("GET", verdict_key(name, version)))
        try:
            return None if dumped is None else GateVerdict.load(dumped)
        except ValueError:
            return None

    def _plan(self, name: str, dumped: bytes | None) -> RolloutPlan:
        """The plan in the store, else as this replica knows it."""
        if dumped is not None:
            return _plan(dumped)
        known = self._known(name) or RolloutPlan(model=name, champion=self._stages.version(name))
        return known if known.revision else replace(known, previous=None)  # nobody decided what came before

    def _check_operator(self, request: Request) -> None:
        """Whether the request brings the operator's token."""
        if not self._token:
            raise Forbidden(
                field=OPERATOR_VARIABLE, got=None, expected="an operator's token in the service's environment",
                next_step=f"Set {OPERATOR_VARIABLE} and start Playhead again.",
            )  # fmt: skip
        given = request.headers.get(OPERATOR_HEADER, "")
        if not hmac.compare_digest(given.encode(), self._token):
            raise Unauthorized(
                field=OPERATOR_HEADER, got=Words("another token" if given else "nothing"),
                expected="the operator's token",
                next_step=f"Send the token that the service was started with ({OPERATOR_VARIABLE}).",
            )  # fmt: skip


def _require_gate(name: str, version: str, verdict: GateVerdict | None, champion: str | None) -> None:
    """Refuse a version that did not pass its gate against the champion."""
    refusal = "no verdict" if verdict is None else verdict.refusal(champion)
    if refusal:
        raise Conflict(
            field="version", got=Words(refusal), expected=f"a gate that {version} passed against {champion}",
            next_step=f"Run `playhead gate {name} {version}`, or say `force` and take the responsibility.",
        )  # fmt: skip


def _shown(plan: RolloutPlan, request_id: str) -> dict[str, Any]:
    found = {"request_id": request_id, **plan.as_json()}
    return {field: found[field] for field in Plan.model_fields}


def _plan(dumped: bytes) -> RolloutPlan:
    try:
        return board.load_plan(dumped)
    except ValueError as error:
        raise Unavailable(
            field="plan", got=Words(str(error)[:200]), expected="a plan of this version of Playhead",
            next_step="Stop Playhead, delete the plan's key in the store, and start it: the champion stays.",
        ) from error  # fmt: skip
