"""Plans of rollouts mirrored into the registry, and versions that they name brought to machines that lack them.

Who answers is decided by the plan in Redis, whatever the registry says; its aliases tell everybody else. A version that
a plan names and the registry does not know is registered from the models' folder, where it lies there; one that the
folder lacks is fetched, where the registry knows it.

`python -m training.mirroring` does it for plans on its standard input, until none come: MLflow's memory is then given
back.
"""

import json
import logging
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from features.settings import Settings
from serve.artifacts import MANIFEST, read_artifact
from serve.errors import ArtifactError, NotFound, PlayheadError, Unavailable
from serve.rollout.board import MODELS, load_plan, plan_key
from serve.rollout.plans import RolloutPlan
from training.registry import Alias, Registry

_log = logging.getLogger(__name__)

_VERSION: Final = re.compile(r"[0-9a-f]{12}")
_MOST_MODELS: Final = 64
_FIRST_REST_S: Final = 5.0
_LONGEST_REST_S: Final = 300.0
_AGAIN_S: Final = 600.0
"""After which aliases that somebody else changed are put right."""

KEPT_S: Final = 120.0
"""How long a process that followed plans waits for more."""

_CHILD_S: Final = 900.0
_LOOK_S: Final = 0.1
_END_S: Final = 5.0
"""Between the end of what a process says and its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What following a plan did.

    Attributes:
        changed: aliases that name another version now, or none.
        registered: versions that were made known from the models' folder.
        fetched: versions that were brought into the models' folder.
        missing: what could not be done, with why: of versions that are neither in the folder nor in the registry, or
            are damaged, or a registry that does not answer.
    """

    changed: tuple[str, ...] = ()
    registered: tuple[str, ...] = ()
    fetched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def follow_plan(registry: Registry, plan: RolloutPlan, models: Path | None = None) -> Followed:
    """Make aliases say what a plan says; nothing is written where they do.

    An alias of a version that the registry does not know names nothing, rather than another version.

    Args:
        registry: the registry.
        plan: who is champion, challenger and the champion before.
        models: folder of model artifacts, from which unknown versions are registered and into which absent ones are
            fetched; None: neither.

    Raises:
        Unavailable: the registry does not answer; call again.
    """
    roles: dict[Alias, str | None] = {
        "champion": plan.champion,
        "challenger": plan.challenger,
        "previous": plan.previous,
    }
    known = {found.version for found in registry.versions(plan.model)}
    registered, fetched, missing = [], [], []
    for version in named(plan):
        try:
            if not _VERSION.fullmatch(version):
                missing.append(f"{version!r} is no version")
            elif models is not None and lacks(models, plan.model, version):
                registry.fetch(plan.model, version, models)
                fetched.append(version)
            elif version not in known:
                if models is None:
                    missing.append(f"{version}: the registry does not know it")
                    continue
                _adopt(registry, models / plan.model / version)
                registered.append(version)
                known.add(version)
        except (NotFound, ArtifactError) as error:
            missing.append(f"{version}: {error}")
    changed = []
    held = registry.aliases(plan.model)
    for alias, wanted in roles.items():
        target = wanted if wanted in known else None
        if held.get(alias) != target:
            registry.set_alias(plan.model, alias, target)
            changed.append(alias)
    return Followed(
        changed=tuple(changed), registered=tuple(registered), fetched=tuple(fetched), missing=tuple(missing)
    )


def named(plan: RolloutPlan) -> list[str]:
    """All versions that a plan names, each once."""
    versions = (plan.champion, plan.challenger, plan.previous, plan.shadow)
    return list(dict.fromkeys(version for version in versions if version is not None))


def lacks(models: Path, model: str, version: str) -> bool:
    """Whether a version is not in the models' folder."""
    return not (models / model / version / MANIFEST).is_file()


def _adopt(registry: Registry, path: Path) -> None:
    """Register a version that was made without the registry."""
    artifact = read_artifact(path)
    with registry.run(artifact.manifest.name, tags={"playhead.adopted": "true"}) as run:
        registry.register(artifact, run.id)


Work = Callable[[Sequence[RolloutPlan]], Mapping[str, Followed]]
"""Follows plans; model -> what that did. Raises Unavailable where it cannot be told."""


class RegistryMirror:
    """Mirrors the plans of all models; called each few seconds, it works only where something is to be done.

    It raises nothing: what is away is waited for, longer and longer up to five minutes, and told in the log once.

    Args:
        models: folder of model artifacts.
        work: does what is to be done, as `in_process` and `InChild` do.
    """

    def __init__(self, models: Path, work: Work) -> None:
        self._models = models
        self._work = work
        self._done: dict[str, tuple[tuple[str | None, ...], float]] = {}
        self._rest_s = _FIRST_REST_S
        self._next_s = -math.inf
        self._trouble = ""
        self._unreadable: dict[str, bytes] = {}

    def look(self, store: redis.Redis) -> dict[str, Followed]:
        """Read the plans, and follow those that changed or are not wholly followed yet.

        Args:
            store: where plans are; its timeouts bound this call's reading.

        Returns:
            Model -> what was done; empty where there was nothing to do or something was away.
        """
        try:
            plans = self._read(store)
        except redis.RedisError as error:
            self._tell(f"the store does not answer: {error}")
            return {}
        now_s = time.monotonic()
        due = [plan for plan in plans if self._is_due(plan, now_s)]
        if not due or now_s < self._next_s:
            return {}
        try:
            followed = dict(self._work(due))
        except PlayheadError as error:
            self._wait()
            self._tell(str(error))
            return {}
        trouble = []
        for plan in due:
            found = followed.get(plan.model)
            if found is not None and not found.missing:
                self._done[plan.model] = (_signature(plan), now_s)
            else:
                trouble.append(f"{plan.model}: {', '.join(found.missing) if found is not None else 'not followed'}")
            if found is not None and (found.changed or found.fetched or found.registered):
                _log.info("registry: %s: %s", plan.model, found)
        if trouble:
            self._wait()
        else:
            self._rest_s, self._next_s = _FIRST_REST_S, -math.inf
        self._tell("; ".join(trouble))
        return followed

    def run(self, store: redis.Redis, stop: threading.Event, *, every_s: float = 3.0) -> None:
        """Look again and again until told to stop."""
        while not stop.is_set():
            self.look(store)
            stop.wait(every_s)

    def _read(self, store: redis.Redis) -> list[RolloutPlan]:
        members: Any = store.smembers(MODELS)
        models = sorted(member.decode(errors="replace") for member in members)[:_MOST_MODELS]
        dumped: Any = store.mget([plan_key(model) for model in models]) if models else []
        plans = []
        for model, value in zip(models, dumped, strict=True):
            if value is None:
                continue
            try:
                plan = load_plan(value)
            except ValueError as error:
                if self._unreadable.get(model) != value:
                    _log.warning("registry: the plan of %s cannot be read: %s", model, error)
                self._unreadable[model] = value
                continue
            if plan.model == model:
                plans.append(plan)
        return plans

    def _is_due(self, plan: RolloutPlan, now_s: float) -> bool:
        done = self._done.get(plan.model)
        return (
            done is None
            or done[0] != _signature(plan)
            or now_s - done[1] > _AGAIN_S
            or any(lacks(self._models, plan.model, version) for version in named(plan))
        )

    def _wait(self) -> None:
        self._next_s = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("registry: %s", trouble)
        elif self._trouble and not trouble:
            _log.info("registry: all plans are followed again")
        self._trouble = trouble


def in_process(registry: Registry, models: Path) -> Work:
    """Work in this process, which then holds MLflow."""

    def work(plans: Sequence[RolloutPlan]) -> dict[str, Followed]:
        followed = {}
        for plan in plans:
            try:
                followed[plan.model] = follow_plan(registry, plan, models)
            except (PlayheadError, OSError) as error:  # a full disk; one model's trouble is not the others'
                followed[plan.model] = Followed(missing=(str(error),))
        return followed

    return work


class InChild:
    """Work in a process of its own, with the settings of the environment.

    It is kept for the next plans, since importing MLflow costs seconds of a core, and ends KEPT_S after the last ones:
    MLflow's memory is then given back.

    Args:
        stop: ends it at once where it works.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._child: subprocess.Popen[str] | None = None

    def __call__(self, plans: Sequence[RolloutPlan]) -> dict[str, Followed]:
        """Follow plans; see Work."""
        given = json.dumps([plan.as_json() for plan in plans]) + "\n"
        was_kept = self._child is not None
        answer, status = self._asked(given)
        if not answer and was_kept:
            answer, status = self._asked(given)  # by another one: that one's time was over
        try:
            return {model: Followed(**_tuples(fields)) for model, fields in json.loads(answer)["followed"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise _unfollowed(f"exit status {status}") from error

    def _asked(self, given: str) -> tuple[str, int | None]:
        """What the process answers; empty: it ended with this status.

        Raises:
            Unavailable: it was ended, for it took too long or all is to stop.
        """
        child = self._child
        if child is None:
            child = self._child = subprocess.Popen(
                [sys.executable, "-m", "training.mirroring"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        told: list[str] = []
        talk = threading.Thread(target=lambda: told.append(_exchanged(child, given)), daemon=True)
        talk.start()
        deadline = time.monotonic() + _CHILD_S
        while talk.is_alive() and not self._stop.is_set() and time.monotonic() < deadline:
            talk.join(_LOOK_S)
        is_late = talk.is_alive()
        if is_late:
            child.kill()
            talk.join()
        answer = told[0] if told else ""
        if not answer:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_S)
            self.close()
        if is_late:
            raise _unfollowed(f"no answer, after {_CHILD_S:g} s or told to stop")
        return answer, child.returncode

    def close(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _unfollowed(got: str) -> Unavailable:
    return Unavailable(
        field="registry", got=got, expected="plans that are followed", next_step="See the log; it is tried again."
    )


def _exchanged(child: subprocess.Popen[str], given: str) -> str:
    """The line that a process answers to a line; empty: it ended."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(OSError):
        child.stdin.write(given)
        child.stdin.flush()
        return child.stdout.readline()
    return ""


def _tuples(fields: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in fields.items()}


def _signature(plan: RolloutPlan) -> tuple[str | None, ...]:
    return plan.champion, plan.challenger, plan.previous, plan.shadow


def main() -> None:
    """Follow the plans of each line of standard input, and tell what that did, as a line of JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    settings = Settings.from_env()
    work = in_process(Registry.of(settings), settings.models)
    while select.select([0], [], [], KEPT_S)[0] and (line := sys.stdin.readline()):
        followed = work([RolloutPlan.from_json(document) for document in json.loads(line)])
        fields = {
            model: {name: getattr(found, name) for name in Followed.__slots__} for model, found in followed.items()
        }
        print(json.dumps({"followed": fields}), file=answers, flush=True)


if __name__ == "__main__":
    main()
