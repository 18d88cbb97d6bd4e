"""The HTTP contract of the quality routes. Units: time s, moments UTC milliseconds, VMAF 0 to 100."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from serve.quality.bitstream import LEAST_SIDE, LONGEST_S, MOST_BYTES, MOST_FPS, MOST_FRAMES, MOST_SIDE

MAX_WAIT_S: Final = 10.0
MAX_EVERY: Final = 1000
MAX_SEGMENTS: Final = 1000
"""Of one question about bitstreams."""

JOB_PATTERN: Final = "^[0-9a-f]{32}$"

State = Literal["queued", "running", "finished", "failed", "cancelled"]
ENDED: Final = ("finished", "failed", "cancelled")

Side = Literal["reference", "distorted"]
Codec = Literal["h264", "hevc", "av1", "vp9"]
FrameKind = Literal["key", "other", "disposable"]

MediaPath = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
JobId = Annotated[str, Field(pattern=JOB_PATTERN)]

EXAMPLE: Final[JsonDict] = {"reference": "film/master.mp4", "distorted": "film/750k.mp4", "model": "vmaf_v0.6.1"}
ALONE_EXAMPLE: Final[JsonDict] = {"distorted": "film/750k.mp4", "display_height": 1080}
_SEGMENT: Final[JsonDict] = {
    "codec": "h264", "width": 1280, "height": 720, "display_height": 1080, "fps": 25.0, "duration_s": 4.0,
    "size_bytes": 912_345,
}  # fmt: skip
SEGMENTS_EXAMPLE: Final[JsonDict] = {"segments": [_SEGMENT]}
_JOB_EXAMPLE: Final[JsonDict] = {
    **EXAMPLE,
    "display_height": None,
    "request_id": "9f1c2d7e5a",
    "job": "3b0c5f7d9a1e4c628f0d2b4a6c8e0f12",
    "state": "running",
    "every": 1,
    "created_ts": 1_790_000_000_000,
    "updated_ts": 1_790_000_004_000,
    "progress": {"done": 1200, "total": 3000},
    "degraded": [],
    "report": None,
    "problem": None,
}


class SegmentFacts(BaseModel):
    """What is known of a segment with no decode, as a manifest or a packager has it.

    Attributes:
        codec: of its video.
        width: of the rendition, pixels.
        height: of the rendition, lines.
        display_height: lines of the source, to which it is scaled up, at least `height`; null: `height`.
        fps: frames a second.
        duration_s: length.
        size_bytes: of all its frames together.
        frame_bytes: sizes in decoding order, `size_bytes` in all; none where they are unknown.
        frame_kinds: of each frame: `key`, `other`, or `disposable` (shown before one decoded earlier, or marked so).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [_SEGMENT]})

    codec: Codec
    width: int = Field(ge=LEAST_SIDE, le=MOST_SIDE)
    height: int = Field(ge=LEAST_SIDE, le=MOST_SIDE)
    display_height: int | None = Field(default=None, ge=LEAST_SIDE, le=MOST_SIDE)
    fps: float = Field(ge=1, le=MOST_FPS)
    duration_s: float = Field(ge=0.001, le=LONGEST_S)
    size_bytes: int = Field(ge=1, le=MOST_BYTES)
    frame_bytes: tuple[Annotated[int, Field(ge=1, le=MOST_BYTES)], ...] = Field(default=(), max_length=MOST_FRAMES)
    frame_kinds: tuple[FrameKind, ...] = Field(default=(), max_length=MOST_FRAMES)


class QualityRequest(BaseModel):
    """Body of POST /v1/quality: an encode and its reference, an encode alone, or facts of bitstreams alone.

    Attributes:
        reference: the clip as it should be: path of a file under the media folder, relative to it.
        distorted: an encode of it, likewise; with no `reference`, its VMAF is estimated.
        model: a published VMAF model, such as `vmaf_v0.6.1` or `vmaf_v0.6.1neg`; only with a `reference`.
        every: score one frame in so many; only with a `reference`.
        display_height: lines that an encode with no `reference` is shown at; null: its own.
        segments: facts instead of files; answered at once.
        wait_s: how long to wait for the report before answering 202; less where the request's deadline is sooner.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True,
        json_schema_extra={"examples": [EXAMPLE, ALONE_EXAMPLE, SEGMENTS_EXAMPLE]},
    )  # fmt: skip

    reference: MediaPath | None = None
    distorted: MediaPath | None = None
    model: str = Field(default="vmaf_v0.6.1", min_length=1, max_length=64)
    every: int = Field(default=1, ge=1, le=MAX_EVERY)
    display_height: int | None = Field(default=None, ge=LEAST_SIDE, le=MOST_SIDE)
    segments: tuple[SegmentFacts, ...] | None = Field(default=None, min_length=1, max_length=MAX_SEGMENTS)
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
    """What was measured against a reference.

    Attributes:
        kind: tells this report from the other.
        model: the VMAF model.
        version: of the artifact `vmaf`.
        backend: what scored: `libvmaf`, or the engine's device, such as `engine cpu`.
        pooled: figures of the clip.
        frames: the scored frames in order.
        corrections: what was done to bring the clips together, in words.
        notes: what else a reader of the scores should know.
    """

    kind: Literal["full_reference"] = "full_reference"
    model: str
    version: str
    backend: str
    pooled: PooledQuality
    frames: tuple[FrameQuality, ...]
    corrections: tuple[str, ...]
    notes: tuple[str, ...]


class EstimatedQuality(BaseModel):
    """An estimate on VMAF's scale.

    Attributes:
        vmaf: median.
        low: lower end of its interval.
        high: upper end.
    """

    vmaf: float
    low: float
    high: float


class EstimateReport(BaseModel):
    """What was estimated with no reference.

    Attributes:
        kind: tells this report from the other.
        model: `quality`.
        version: of its artifact.
        method: `bitstream`, or `both` where decoded frames were looked at too.
        coverage: share of segments of unseen content whose VMAF lies in their intervals, as held-out content showed.
        segment_s: length that segments of a file have at least, but the last; null where facts came as segments.
        clip: means over the segments.
        segments: one estimate each, in order.
    """

    kind: Literal["no_reference"] = "no_reference"
    model: str
    version: str
    method: Literal["bitstream", "both"]
    coverage: float
    segment_s: float | None
    clip: EstimatedQuality
    segments: tuple[EstimatedQuality, ...]


Report = Annotated[QualityReport | EstimateReport, Field(discriminator="kind")]


class QualityEstimate(BaseModel):
    """Answer of POST /v1/quality to facts of bitstreams: no job, the report at once.

    Attributes:
        request_id: names this answer.
        degraded: why they are less than they could be: `stale_model`; empty when all is well.
        report: an estimate of each segment.
    """

    request_id: str
    degraded: tuple[str, ...]
    report: EstimateReport


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
        reference: as asked, or the name of the file that was uploaded; null for an estimate.
        distorted: likewise.
        model: as asked; `quality` for an estimate.
        every: as asked.
        display_height: as asked.
        created_ts: when it was asked for first.
        updated_ts: when this was last written.
        progress: how far it is.
        degraded: why its report is less than it could be: `stale_model`; empty when all is well.
        report: null until it is finished.
        problem: null unless it failed.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_JOB_EXAMPLE]})

    request_id: str
    job: str
    state: State
    reference: str | None
    distorted: str
    model: str
    every: int
    display_height: int | None
    created_ts: int
    updated_ts: int
    progress: QualityProgress
    degraded: tuple[str, ...]
    report: Report | None
    problem: QualityProblem | None


class Task(BaseModel):
    """What a worker is told: `request.json` of a job.

    Attributes:
        reference: path under `media`, or a name of an uploaded file; None for an estimate.
        distorted: likewise.
        uploaded: which of the two lie in the job's own folder of uploads.
        model: VMAF model, or `quality` for an estimate.
        every: one frame in so many.
        display_height: lines that an encode with no reference is shown at.
        media: the folder that files may lie in; None where both were uploaded.
        artifact: folder of the version of the model.
        device: of an engine: cpu, torch, cuda or auto.
        limits: arguments of serve.quality.media.Limits.
        deadline_s: longest time that the work may take.
        created_ts: when it was asked for, UTC milliseconds.
        degraded: as of QualityJob.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str | None
    distorted: str
    uploaded: tuple[Side, ...] = ()
    model: str
    every: int
    display_height: int | None = None
    media: str | None
    artifact: str
    device: Literal["cpu", "torch", "cuda", "auto"]
    limits: dict[str, Any]
    deadline_s: float
    created_ts: int
    degraded: tuple[str, ...] = ()

    def dumped(self) -> bytes:
        """As JSON; an empty `degraded` is left out, since releases that do not know it take no task with it."""
        return self.model_dump_json(exclude=None if self.degraded else {"degraded"}).encode()

    @property
    def files(self) -> dict[Side, str]:
        """Field -> what was said of its file, of those that there are."""
        named: dict[Side, str | None] = {"reference": self.reference, "distorted": self.distorted}
        return {field: given for field, given in named.items() if given is not None}


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
