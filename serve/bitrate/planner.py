"""The planner: from sessions to rungs, on whatever policy is live.

Requests that come within a few rounds of the event loop share one engine call; none waits for another. A batch
that would hold the loop up runs in a thread.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from serve.artifacts import read_artifact
from serve.bitrate.observations import RUNGS, Observations
from serve.bitrate.rules import SAFE_REBUFFER
from serve.bitrate.sessions import Session, observe
from serve.engines import Device, load_engine
from serve.engines.base import BATCH, Engine
from serve.errors import ArtifactError, InvalidInput

GRAPH: Final = "policy"
BATCHES: Final = (1, 4, 16, 64, 256, 1024)
"""Sizes that engines are compiled for. A batch is filled up to the next: an engine whose shapes change from call to
call spends longer on preparing for them than on the work (docs/engines.md)."""

INLINE: Final = 64
"""Sessions that are planned on the event loop, where a thread would cost more; about a millisecond."""

_ROUNDS: Final = 3
"""Rounds of the event loop from a first request to the engine call. Idle rounds cost a lone request nothing that can be
measured; with 16 at a time the endpoint answers 25 % more requests (docs/performance.md)."""

MODEL_MISSING: Final = "model_missing"
PLANNER_FAILED: Final = "planner_failed"
PLANNER_TIMEOUT: Final = "planner_timeout"

P10, P50, P90 = 1, 3, 5
"""Places of these quantiles in `throughput_quantiles_kbps` (.05 .1 .25 .5 .75 .9 .95)."""


class NoPlan(Exception):
    """The planner has no answer.

    Args:
        reason: goes into `degraded`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Plan:
    """What the policy says of a batch of B sessions.

    Attributes:
        version: of the policy.
        rungs: rung to fetch next by session, an index into its ladder; -1 where the policy gave no sound answer.
        safe_rungs: the highest rung up to which each is safe by SAFE_REBUFFER; at least 0.
        rebuffer_probability: of the chosen rung.
        throughput_kbps: quantiles .1, .5 and .9 of the next download's throughput, by session.
        others: place of a session -> version of the policy that planned for it, where that is another.
        missing: version -> sessions that it should have planned for and did not; the plan is another version's.
        seconds: version -> what its own stage took, above 0; who is not there was not timed.
        salt: of the rollout by which versions were chosen; empty where none goes on.
        share: of its challenger.
        stale: whether `version` answers in the place of one that can't be loaded.
    """

    version: str
    rungs: Sequence[int]
    safe_rungs: Sequence[int]
    rebuffer_probability: Sequence[float]
    throughput_kbps: Sequence[Sequence[float]]
    others: Mapping[int, str] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    salt: str = ""
    share: float = 0.0
    stale: bool = False

    def version_of(self, place: int) -> str:
        """The version that planned for a session."""
        return self.others.get(place, self.version)

    def by_version(self) -> dict[str, Sequence[int]]:
        """Version -> places of the sessions that it planned for; at least one each."""
        if not self.others:
            return {self.version: range(len(self.rungs))}
        places: dict[str, list[int]] = {}
        for place in range(len(self.rungs)):
            places.setdefault(self.version_of(place), []).append(place)
        return {**places}

    def part(self, start: int, end: int) -> "Plan":
        """The plan of some of the sessions."""
        cut = slice(start, end)
        return Plan(
            self.version,
            self.rungs[cut],
            self.safe_rungs[cut],
            self.rebuffer_probability[cut],
            self.throughput_kbps[cut],
            seconds=self.seconds,
        )


class Planner(Protocol):
    """What plans, wherever it runs."""

    async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
        """Plan for sessions with at least one rung each.

        Raises:
            NoPlan: there is no model, or no answer in time.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """A bitrate artifact, loaded and warmed up. Immutable; any number of threads may use it.

    Attributes:
        version: version of the artifact.
        engines: batch size -> engine, smallest first.
    """

    version: str
    engines: Mapping[int, Engine]

    @classmethod
    def load(cls, path: Path, *, device: Device = "auto", threads: int = 1) -> Self:
        """Check an artifact and load its engines; takes seconds, so keep it off the event loop.

        Args:
            path: the artifact's folder.
            device: where the engines run.
            threads: CPU threads that one call may use.

        Raises:
            ArtifactError: the artifact is damaged, or is no bitrate policy; names the field.
            Unavailable: the device is not there.
        """
        artifact = read_artifact(path)
        policy = cls(
            version=artifact.version,
            engines={
                size: load_engine(artifact, GRAPH, device, threads=threads, batches=(), sizes={BATCH: size})
                for size in BATCHES
            },
        )
        try:
            for size in BATCHES:
                policy(observe([Session(rungs_kbps=(300.0, 900.0), places=(0, 1))] * size))
        except (InvalidInput, KeyError) as error:
            raise ArtifactError(
                field=f"graphs.{GRAPH}",
                got=str(error),
                expected="the inputs and outputs that the planner knows",
                next_step="Train the model again with this version of Playhead.",
            ) from error
        return policy

    def __call__(self, observations: Observations) -> Plan:
        """Plan for a batch.

        Args:
            observations: 1 to max(BATCHES) sessions.

        Raises:
            InvalidInput: an input is out of the range that the policy was made for.
        """
        count = len(observations)
        started_s = time.perf_counter()
        size = next(batch for batch in self.engines if batch >= count)
        engine = self.engines[size]
        inputs = observations.as_inputs()
        if size != count:
            inputs = {name: _filled(array, size) for name, array in inputs.items()}
        outputs = engine(inputs)
        plan = _plan(
            self.version,
            outputs["scores"][:count],
            outputs["rebuffer_probability"][:count],
            outputs["throughput_quantiles_kbps"][:count],
            observations.rungs_kbps,
        )
        return replace(plan, seconds={self.version: time.perf_counter() - started_s})


def _filled(array: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The array with its last line repeated up to `size` lines."""
    filled = np.empty((size, *array.shape[1:]), np.float32)
    filled[: len(array)] = array
    filled[len(array) :] = array[-1]
    return filled


def _plan(
    version: str,
    scores: NDArray[np.float32],
    probability: NDArray[np.float32],
    quantiles: NDArray[np.float32],
    rungs_kbps: NDArray[np.float32],
) -> Plan:
    """What follows from the policy's outputs, (B, RUNGS), (B, RUNGS) and (B, 7)."""
    present = rungs_kbps > 0
    rungs = np.where(present, scores, -np.inf).argmax(axis=1)
    lines = np.arange(len(rungs))
    sound = np.isfinite(scores).all(axis=1) & np.isfinite(quantiles).all(axis=1) & np.isfinite(probability).all(axis=1)
    unsafe = (probability >= SAFE_REBUFFER) | ~present
    unsafe[:, 0] = False
    safe_rungs = np.where(unsafe.any(axis=1), unsafe.argmax(axis=1), RUNGS) - 1
    return Plan(
        version=version,
        rungs=np.where(sound, rungs, -1).tolist(),
        safe_rungs=safe_rungs.tolist(),
        rebuffer_probability=np.clip(probability[lines, rungs], 0.0, 1.0).tolist(),
        throughput_kbps=quantiles[:, [P10, P50, P90]].tolist(),
    )


@dataclass(slots=True, eq=False)
class _Job:
    """Sessions of one request that wait for the round's engine call."""

    sessions: Sequence[Session]
    done: "asyncio.Future[Plan]"


class BitratePlanner:
    """Plans with the live policy. Belongs to one event loop.

    Args:
        device: where the engines run.
        threads: CPU threads of one engine call.
        timed: told the seconds that each call of the policy took; several requests may share one.
    """

    def __init__(
        self, device: Device = "auto", threads: int = 1, timed: Callable[[float], None] = lambda _seconds: None
    ) -> None:
        self._device: Device = device
        self._threads = threads
        self._timed = timed
        self._policy: Policy | None = None
        self._jobs: list[_Job] = []

    @property
    def version(self) -> str | None:
        """Version of the policy that answers; None without one."""
        return None if self._policy is None else self._policy.version

    async def load(self, path: Path) -> str:
        """Load a policy and make it answer; the one before answers until then.

        Args:
            path: the artifact's folder.

        Returns:
            Its version.

        Raises:
            ArtifactError: it is damaged or does not fit; the one before keeps answering.
            Unavailable: the device is not there; likewise.
        """
        self._policy = await asyncio.to_thread(Policy.load, path, device=self._device, threads=self._threads)
        return self._policy.version

    async def plan(self, sessions: Sequence[Session], within_s: float) -> Plan:
        """Plan for sessions with at least one rung each.

        Args:
            sessions: 1 to max(BATCHES).
            within_s: longest wait, seconds.

        Raises:
            NoPlan: there is no policy.
            TimeoutError: no answer in time.
        """
        policy = self._policy
        if policy is None:
            raise NoPlan(MODEL_MISSING)
        if len(sessions) > INLINE:
            async with asyncio.timeout(within_s):
                return await asyncio.to_thread(lambda: policy(observe(sessions)))
        job = _Job(sessions, asyncio.get_running_loop().create_future())
        if not self._jobs:
            self._gather(_ROUNDS)
        self._jobs.append(job)
        return await job.done

    async def plan_for(self, observations: Observations) -> Plan:
        """Plan for sessions that were laid out elsewhere.

        Raises:
            NoPlan: there is no policy.
        """
        policy = self._policy
        if policy is None:
            raise NoPlan(MODEL_MISSING)
        if len(observations) > INLINE:
            return await asyncio.to_thread(policy, observations)
        return policy(observations)

    def _gather(self, rounds: int) -> None:
        """Work after some more rounds of the event loop: what comes meanwhile joins the call."""
        loop = asyncio.get_running_loop()
        if rounds > 1:
            loop.call_soon(self._gather, rounds - 1)
        else:
            loop.call_soon(self._work)

    def _work(self) -> None:
        """Run the engine for all that wait, in batches of at most INLINE sessions."""
        jobs, self._jobs = self._jobs, []
        policy = self._policy
        assert policy is not None  # it is never taken away
        ends = [0]
        count = 0
        for index, job in enumerate(jobs):
            if count + len(job.sessions) > INLINE:
                ends.append(index)
                count = 0
            count += len(job.sessions)
        for start, end in pairwise([*ends, len(jobs)]):
            started_s = time.perf_counter()
            _work_off(policy, jobs[start:end])
            self._timed(time.perf_counter() - started_s)


def _work_off(policy: Policy, jobs: Sequence[_Job]) -> None:
    try:
        plan = policy(observe([session for job in jobs for session in job.sessions]))
    except Exception as error:  # noqa: BLE001 - one session must not cost the others their plan
        if len(jobs) > 1:
            for job in jobs:
                _work_off(policy, [job])
        elif not jobs[0].done.done():
            jobs[0].done.set_exception(error)
        return
    start = 0
    for job in jobs:
        end = start + len(job.sessions)
        if not job.done.done():
            job.done.set_result(plan.part(start, end))
        start = end
