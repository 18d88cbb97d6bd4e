"""The HTTP contract of the quality routes. Units: time s, moments UTC milliseconds, VMAF 0 to 100."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

MAX_WAIT_S: Final = 10.0
MAX_EVERY: Final = 1000
JOB_PATTERN: Final = "^[0-9a-f]{32}$"

State = Literal["queued", "running", "finished", "failed", "cancelled"]
ENDED: Final = ("finished", "failed", "cancelled")

MediaPath = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
JobId = Annotated[str, Field(pattern=JOB_PATTERN)]

EXAMPLE: Final[JsonDict] = {"reference": "film/master.mp4", "distorted": "film/750k.mp4", "model": "vmaf_v0.6.1"}
_JOB_EXAMPLE: Final[JsonDict] = {
    **EXAMPLE,
    "request_id": "9f1c2d7e5a",
    "job": "3b0c5f7d9a1e4c628f0d2b4a6c8e0f12",
    "state": "running",
    "every": 1,
    "created_ts": 1_790_000_000_000,
    "updated_ts": 1_790_000_004_000,
    "progress": {"done": 1200, "total": 3000},
    "report": None,
    "problem": None,
}


class QualityRequest(BaseModel):
    """Body of POST /v1/quality.

    Attributes:
        reference: the clip as it should be: path of a file under the media folder, relative to it.
        distorted: an encode of it, likewise.
        model: a published VMAF model, such as `vmaf_v0.6.1` or `vmaf_v0.6.1neg`.
        every: score one frame in so many.
        wait_s: how long to wait for the report before answering 202; less where the request's deadline is sooner.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [EXAMPLE]})

    reference: MediaPath
    distorted: MediaPath
    model: str = Field(default="vmaf_v0.6.1", min_length=1, max_length=64)
    every: int = Field(default=1, ge=1, le=MAX_EVERY)
    wait_s: float = Field(default=5.0, ge=0, le=MAX_WAIT_S)


class PooledQuality(BaseModel):
    """Figures of a clip, on VMAF's scale.

    Attributes:
        mean: arithmetic.
        harmonic_mean: of scores + 1, less 1; low scores weigh more.
        p1: first percentile.
        p5: fifth percentile.
        worst_second: least mean over one second.
        margin: half the width of the mean's 95 % confidence interval; 0 where every frame was scored, null where a
            single one stands for the rest.
    """

    mean: float
    harmonic_mean: float
    p1: float
    p5: float
    worst_second: float
    margin: float | None


class FrameQuality(BaseModel):
    """One scored frame.

    Attributes:
        frame: among all pairs, from 0.
        time_s: in the reference clip.
        vmaf: its score.
    """

    frame: int
    time_s: float
    vmaf: float


class QualityReport(BaseModel):
    """What was measured.

    Attributes:
        model: the VMAF model.
        version: of the artifact `vmaf`.
        backend: what scored: `libvmaf`, or the engine's device, such as `engine cpu`.
        pooled: figures of the clip.
        frames: the scored frames in order.
        corrections: what was done to bring the clips together, in words.
        notes: what else a reader of the scores should know.
    """

    model: str
    version: str
    backend: str
    pooled: PooledQuality
    frames: tuple[FrameQuality, ...]
    corrections: tuple[str, ...]
    notes: tuple[str, ...]


class QualityProgress(BaseModel):
    """How far a job is.

    Attributes:
        done: frames that were scored or passed.
        total: frames that there are; null until that is known.
    """

    done: int = Field(ge=0)
    total: int | None


class QualityProblem(BaseModel):
    """Why a job failed: the problem that POST answers with.

    Attributes:
        title: kind of problem.
        status: HTTP status that POST answers with.
        field: what was wrong: `reference`, `distorted`, ...
        got: what came.
        expected: what would have been right.
        next_step: what to do.
    """

    title: str
    status: int
    field: str
    got: str
    expected: str
    next_step: str


class QualityJob(BaseModel):
    """Answer of all quality routes: a job, and its report once it is finished.

    Attributes:
        request_id: names this answer.
        job: id; the same question about the same files is the same job.
        state: `queued`, `running`, `finished`, `failed` or `cancelled`.
        reference: as asked.
        distorted: as asked.
        model: as asked.
        every: as asked.
        created_ts: when it was asked for first.
        updated_ts: when this was last written.
        progress: how far it is.
        report: null until it is finished.
        problem: null unless it failed.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_JOB_EXAMPLE]})

    request_id: str
    job: str
    state: State
    reference: str
    distorted: str
    model: str
    every: int
    created_ts: int
    updated_ts: int
    progress: QualityProgress
    report: QualityReport | None
    problem: QualityProblem | None


class Task(BaseModel):
    """What a worker is told: `request.json` of a job.

    Attributes:
        reference: path under `media`.
        distorted: likewise.
        model: VMAF model.
        every: one frame in so many.
        media: the folder that files may lie in.
        artifact: folder of the version of `vmaf`.
        device: of an engine: cpu, torch, cuda or auto.
        limits: arguments of serve.quality.media.Limits.
        deadline_s: longest time that the work may take.
        created_ts: when it was asked for, UTC milliseconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str
    distorted: str
    model: str
    every: int
    media: str
    artifact: str
    device: Literal["cpu", "torch", "cuda", "auto"]
    limits: dict[str, Any]
    deadline_s: float
    created_ts: int


class Status(BaseModel):
    """How a job stands: its `state.json`.

    Attributes:
        state: as of QualityJob.
        updated_ts: when it was written, UTC milliseconds.
        done: frames that went through.
        total: frames that there are.
        attempts: how often work on it began.
        problem: why it failed.
    """

    model_config = ConfigDict(frozen=True)

    state: State
    updated_ts: int
    done: int = 0
    total: int | None = None
    attempts: int = 0
    problem: QualityProblem | None = None
