"""One update of a model: snapshot, checks, training, gate, and the first stage of a rollout.

Run as `python -m deployments.learning.update JSON` (model, update, trigger) it tells each step to the store, and ends
with status DONE if a rollout began, with REFUSED if it failed and said why. An update that is taken up again under its
name uses the snapshot that it made, and goes on where its training was.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl
import redis

from deployments.candidates import run_as_job
from deployments.learning.learner import DONE, MODELS, REFUSED
from deployments.learning.policy import LearningPolicy, Trigger
from deployments.learning.verdicts import tell
from deployments.progress import Moment, Notice, Reporter
from deployments.state import RunFolder, StackState, store_url
from features.errors import FeaturesError
from features.settings import Settings
from serve.artifacts import Artifact, Manifest, read_artifact
from serve.clock import now_ms, utc
from serve.errors import InvalidInput, PlayheadError, Unavailable
from serve.learning import STEPS, Name, Step, load_steps, step_arguments
from serve.learning import Moment as StepMoment
from serve.logs import configure
from serve.rollout.board import change_arguments, load_plan, plan_key
from serve.rollout.plans import RolloutPlan
from serve.rollout.standing import find_champion
from serve.watchtower.board import Store, connect
from training.checks import check_data, require
from training.data_profiles import DataProfile, read_profile
from training.datasets import Dataset, open_dataset
from training.gates.gate import gate
from training.gates.recommend import RecommendSettings
from training.recommend.warm import UnfitParent
from training.retention import kept_from_env, prune
from training.snapshots import take_snapshot

DATASET_VARIABLE: Final = "PLAYHEAD_DATASET"
"""Name of the data set that snapshots add the live events to."""

_LATELY: Final = 200
"""Steps that are looked through for those of an update that is taken up."""

_BASE: Final = "ml-100k"
_BY: Final = "learner"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a step found; filled in while it goes on."""

    text: list[str]
    evidence: dict[str, Any]


class Update:
    """One update.

    Args:
        settings: where everything lies.
        store: where steps and plans are told.
        policy: how much is held out, and how large the first share is.
        model: which.
        update: names it.
        trigger: why.
        base: data set that the live events are added to.
        reporter: told of the progress.
        options: of the training, as `train_candidate` takes them.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        policy: LearningPolicy,
        model: str,
        update: str,
        trigger: Trigger,
        *,
        base: str,
        reporter: Reporter,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._policy = policy
        self._model = model
        self._update = update
        self._trigger = trigger
        self._base = base
        self._reporter = reporter
        self._options = dict(options or {})

    def run(self) -> Artifact:
        """Do it all; the candidate's rollout has begun when this returns.

        Raises:
            PlayheadError: a step failed; it was told.
            FeaturesError: likewise.
        """
        try:
            return self._run()
        finally:
            self._prune()

    def has_begun_rollout(self) -> bool:
        """Whether its rollout began already: its process died after that, and there is nothing to take up."""
        entries: Any = self._store.xrevrange(STEPS, count=_LATELY)
        found = {(step.model, step.update, step.name, step.moment) for step in load_steps(entries)}
        return (self._model, self._update, "rollout", "done") in found

    def tell_end(self, text: str) -> None:
        """Tell that it ended before its time."""
        self._tell_step("update", "failed", text)

    def _run(self) -> Artifact:
        with self._step("update", self._trigger.reason) as whole:
            self._require_quiet(self._plan())
            champion = self._champion()
            with self._step("snapshot") as told:
                dataset, cut_ms, starts = self._snapshot(champion)
                told.text.append(f"{dataset.rows['events']:,} events, {starts:,} new plays after the cut")
                told.evidence.update(dataset=dataset.name, snapshot=dataset.snapshot, cut_ms=cut_ms, starts=starts)
            with self._step("checks") as told:
                report = check_data(dataset, read_profile(self._settings, self._model))
                told.evidence.update(report.as_json())
                require(report)
                told.text.append("; ".join(map(str, report.problems)) or "nothing wrong")
            with self._step("training") as told:
                candidate = self._train(told, champion, dataset, cut_ms, report.profile)
            with self._step("gate") as told:
                self._gate(told, candidate, champion, dataset, cut_ms)
            with self._step("rollout") as told:
                told.text.append(self._begin(candidate.version, champion.version))
            whole.text.append(f"{candidate.version} is tried")
            whole.evidence.update(version=candidate.version)
        return candidate

    def _require_quiet(self, plan: RolloutPlan) -> None:
        """See that no rollout goes on: another can't begin, and its champion may change.

        Raises:
            InvalidInput: one does.
        """
        if plan.challenger is not None:
            raise InvalidInput(
                field="model", got=f"a rollout of {self._model} {plan.challenger} goes on", expected="none",
                next_step=f"Wait until it ends, or end it: playhead rollout rollback {self._model}.",
            )  # fmt: skip

    def _champion(self) -> Artifact:
        """The version that answers now.

        Raises:
            InvalidInput: none does.
        """
        version = self._plan().champion
        if version is None:
            raise InvalidInput(
                field="model", got=self._model, expected="a champion to begin from",
                next_step=f"Train the first one: playhead train {self._model}.",
            )  # fmt: skip
        return read_artifact(self._settings.models / self._model / version)

    def _snapshot(self, champion: Artifact) -> tuple[Dataset, int, int]:
        """The data, where what is held out begins, and how many plays are new after that."""
        name = f"{self._model}-{self._update}"
        path = self._settings.datasets / name
        dataset = open_dataset(path) if path.is_dir() else take_snapshot(self._settings, self._base, name=name)
        since_ms = max(self._trigger.since_ms or 0, _last_ms(champion.manifest))
        plays = dataset.scan("events").filter((pl.col("kind") == "play") & (pl.col("ts") > since_ms)).select("ts")
        times = plays.sort("ts").collect()["ts"]
        held_out = round(len(times) * self._policy.held_out)
        least = RecommendSettings().least_starts
        if held_out < least:
            raise InvalidInput(
                field="events", got=f"{len(times)} plays after {utc(since_ms)}, of which {held_out} are held out",
                expected=f"at least {least} to judge a candidate by",
                next_step="Wait for more, or see whether players name what they play.",
            )  # fmt: skip
        return dataset, int(times[len(times) - held_out]), held_out

    def _train(self, told: _Told, champion: Artifact, dataset: Dataset, cut_ms: int, checked: DataProfile) -> Artifact:
        """A version that starts from the champion's weights, or cold on all that is known where it can't."""

        def made(**how: Any) -> Artifact:
            candidate, _ = run_as_job(
                self._model, self._settings, self._reporter, dataset=dataset, until_ms=cut_ms, resume=True,
                checked=checked, **how, **self._options,
            )  # fmt: skip
            return candidate

        try:
            candidate = made(warm=True, origin=champion.version, since_ms=self._trigger.since_ms)
            told.text.append(f"{candidate.version} from {champion.version}")
        except UnfitParent as error:  # of an older Playhead: the next version is of this one
            told.evidence.update(cold=str(error))
            self._tell_step("training", "begun", f"cold, for {error}")
            candidate = made()
            told.text.append(f"{candidate.version}, cold: the weights of {champion.version} can't be started from")
        told.evidence.update(version=candidate.version, metrics=dict(candidate.manifest.metrics))
        return candidate

    def _gate(self, told: _Told, candidate: Artifact, champion: Artifact, dataset: Dataset, cut_ms: int) -> None:
        verdict = gate(
            self._model, candidate.version, self._settings, dataset=dataset, cut_ms=cut_ms, against=champion.version
        )
        failed = tuple(check.name for check in verdict.failed)
        told.evidence.update(
            checks={check.name: {"passed": check.passed, "text": check.text} for check in verdict.checks}
        )
        tell(verdict, self._store)
        if not verdict.passed:
            raise InvalidInput(
                field=f"{self._model} {candidate.version}", got=f"failed: {', '.join(failed)}",
                expected="a candidate that passes its gate",
                next_step=f"See the report: playhead gate {self._model} {candidate.version}.",
            )  # fmt: skip
        told.text.append(f"{len(verdict.checks)} checks passed")

    def _begin(self, version: str, champion: str) -> str:
        """Begin the rollout, unless somebody else began one, or made another version champion, meanwhile."""
        plan = self._plan()
        self._require_quiet(plan)
        if plan.champion != champion:
            raise InvalidInput(
                field="champion", got=f"{plan.champion} answers now",
                expected=f"{champion}, which the gate compared with",
                next_step=f"Compare again: playhead gate {self._model} {version}; the next update begins from it.",
            )  # fmt: skip
        after = plan.begun(version, self._policy.first_share, now_ms())
        change = {
            "action": "promote", "by": _BY, "reason": f"{self._trigger.reason}; its gate passed",
            "evidence": {"update": self._update, "cause": self._trigger.cause},
        }  # fmt: skip
        if not self._store.eval(*change_arguments(after, change, after=plan.revision)):
            raise InvalidInput(
                field="plan", got="another change at the same time", expected="one change at a time",
                next_step="The next update begins a rollout of what is best then.",
            )  # fmt: skip
        return f"{self._policy.first_share:.0%} of what is asked"

    def _plan(self) -> RolloutPlan:
        dumped: Any = self._store.get(plan_key(self._model))
        plan = RolloutPlan(model=self._model) if dumped is None else load_plan(dumped)
        return plan if plan.champion else replace(plan, champion=find_champion(self._settings, self._model))

    def _prune(self) -> None:
        """Take away old versions, snapshots and reports; what can't be done now is done after the next update."""
        try:
            pruned = prune(self._settings, self._model, keep=kept_from_env())
        except (PlayheadError, OSError) as error:
            _log.warning("nothing is pruned: %s", error)
        else:
            if pruned.trouble:
                _log.warning("not all is pruned: %s", pruned.trouble)

    @contextmanager
    def _step(self, name: Name, begins: str = "") -> Iterator[_Told]:
        """Tell a step that begins, and how it ends."""
        self._tell_step(name, "begun", begins)
        told = _Told([], {})
        try:
            yield told
        except (PlayheadError, FeaturesError) as error:
            self._tell_step(name, "failed", str(error), told.evidence)
            raise
        self._tell_step(name, "done", "; ".join(told.text), told.evidence)

    def _tell_step(self, name: Name, moment: StepMoment, text: str, evidence: Mapping[str, Any] | None = None) -> None:
        step = Step(
            model=self._model, update=self._update, name=name, moment=moment, ts=now_ms(), text=text,
            evidence=evidence or {},
        )  # fmt: skip
        self._store.execute_command(*step_arguments(step))  # type: ignore[no-untyped-call]
        self._reporter.tell(Notice(phase=step.name, moment=Moment.NOTE, text=f"{step.moment} {step.text}"))
        _log.info("%s %s: %s %s %s", step.model, step.update, step.name, step.moment, step.text)


def _last_ms(champion: Manifest) -> int:
    """The newest event that the champion has seen; where nobody wrote it down, when it was made."""
    if champion.lineage is not None and champion.lineage.last_ts_ms:
        return champion.lineage.last_ts_ms
    return int(champion.created.timestamp() * 1000)


class _LogReporter:
    """Tells the log."""

    def tell(self, notice: Notice) -> None:
        if notice.moment is not Moment.ADVANCE:
            _log.info("%s %s %s", notice.phase, notice.moment.value, notice.text)


def update_now(model: str, base: str, reporter: Reporter) -> Artifact:
    """Update a model because an operator asks for it.

    Args:
        model: which.
        base: data set that the live events are added to; empty: as the environment says, else the stack's, else
            ml-100k.
        reporter: told of the progress.

    Raises:
        InvalidInput: the model does not learn from watch events.
        PlayheadError: a step failed.
        FeaturesError: likewise.
    """
    if model not in MODELS:
        raise InvalidInput(
            field="model", got=model, expected=f"one of {', '.join(MODELS)}, which learn from watch events",
            next_step=f"Train it on its own material: playhead train {model}.",
        )  # fmt: skip
    settings = Settings.from_env()
    settings = replace(settings, redis_url=store_url(settings))
    state = StackState.read(RunFolder(settings.home))
    base = base or os.environ.get(DATASET_VARIABLE) or (state.data if state is not None else "") or _BASE
    trigger = Trigger(cause="operator", reason="asked for")
    update = Update(
        settings, connect(settings), LearningPolicy.from_env(), model, f"{now_ms()}", trigger, base=base,
        reporter=reporter,
    )  # fmt: skip
    try:
        return update.run()
    except redis.RedisError as error:
        raise Unavailable(
            field="store", got=str(error)[:200], expected="a store that answers",
            next_step="Start the stack (`playhead up`), or correct REDIS_URL.",
        ) from error  # fmt: skip
    except KeyboardInterrupt:
        with suppress(redis.RedisError):
            update.tell_end("cancelled")
        raise


def main() -> int:
    """Do the update that the first argument asks for."""
    configure()
    asked = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_input, daemon=True).start()
    settings = Settings.from_env()
    update = Update(
        settings, connect(settings), LearningPolicy.from_env(), asked["model"], asked["update"],
        Trigger(**asked["trigger"]), base=os.environ.get(DATASET_VARIABLE, _BASE), reporter=_LogReporter(),
    )  # fmt: skip
    try:
        if not update.has_begun_rollout():
            update.run()
    except (PlayheadError, FeaturesError) as error:
        _log.error("update failed: %s", error)
        return REFUSED
    return DONE


def _end_with_input() -> None:
    """End when the standard input does: whoever started us is gone."""
    while os.read(0, 4096):
        pass
    os._exit(3)


if __name__ == "__main__":
    raise SystemExit(main())
