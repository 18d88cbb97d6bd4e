"""From a question about quality to a job: which files, which model, which id."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from serve.artifacts import read_artifact, read_champion
from serve.errors import ArtifactError, InvalidInput, Unavailable
from serve.quality.files import find_file
from serve.quality.jobs import JobStore, QualityLimits, name_of, now_ms
from serve.quality.schemas import QualityRequest, Task

MEDIA_VARIABLE: Final = "PLAYHEAD_MEDIA"
_MODEL: Final = "vmaf"


@dataclass(frozen=True, kw_only=True)
class IntakeSettings:
    """What jobs are made with.

    Attributes:
        media: the folder that files may lie in; None refuses all.
        models: folder of model artifacts.
        device: of an engine: cpu, torch, cuda or auto.
        limits: bounds of a job.
    """

    media: Path | None
    models: Path
    device: Literal["cpu", "torch", "cuda", "auto"]
    limits: QualityLimits


class Intake:
    """Takes questions in.

    Args:
        settings: what jobs are made with.
        store: where jobs go.
    """

    def __init__(self, settings: IntakeSettings, store: JobStore) -> None:
        self._settings = settings
        self._store = store
        self._known: tuple[Path, tuple[str, ...]] | None = None

    def ask(self, request: QualityRequest) -> str:
        """The id of the job that answers a question; it is queued where it is new. Reads files: not on an event loop.

        Raises:
            Unavailable: no media folder, no artifact, or too many jobs wait.
            NotFound: a path names no file under the media folder.
            InvalidInput: the artifact has no such model.
        """
        media = self._settings.media
        if media is None or not media.is_dir():
            raise Unavailable(
                field=MEDIA_VARIABLE, got="no folder", expected="the folder that clips may lie in",
                next_step=f"Set {MEDIA_VARIABLE} to it where the service is started, and start it again.",
            )  # fmt: skip
        files = [find_file(media, getattr(request, field), field) for field in ("reference", "distorted")]
        artifact, models = self._artifact()
        if request.model not in models:
            raise InvalidInput(
                field="model", got=request.model, expected=" or ".join(models), next_step="Name one of these."
            )
        limits = self._settings.limits
        task = Task(
            reference=request.reference, distorted=request.distorted, model=request.model, every=request.every,
            media=str(media), artifact=str(artifact), device=self._settings.device, deadline_s=limits.deadline_s,
            created_ts=now_ms(),
            limits=limits.model_dump(
                include={"max_bytes", "max_duration_s", "max_frames", "max_pixels", "deadline_s", "threads"}
            ),
        )  # fmt: skip
        try:
            name = name_of(task, files)
            self._store.add(name, task)
        except OSError as error:  # a file that is gone since, or a home folder that is full
            raise Unavailable(
                field="job", got=error.strerror or type(error).__name__, expected="a job that can be written",
                next_step="Ask again; if that does not help, look at the room on the service's disk.",
            ) from error  # fmt: skip
        return name

    def _artifact(self) -> tuple[Path, tuple[str, ...]]:
        """Folder of the live version of `vmaf`, and its models; read once for each version."""
        try:
            folder = read_champion(self._settings.models, _MODEL)
            if folder is None:
                raise _no_artifact("none")
            if self._known is None or self._known[0] != folder:
                models = read_artifact(folder).manifest.parameters.get("models")
                self._known = (folder, tuple(models) if isinstance(models, dict) else ())
        except ArtifactError as error:
            raise _no_artifact(f"one that cannot be read ({error.field})") from error
        return self._known


def _no_artifact(got: str) -> Unavailable:
    return Unavailable(
        field="vmaf", got=got, expected="the artifact of the VMAF models",
        next_step="Make it with `playhead eval quality` or `playhead train quality`, then ask again.",
    )  # fmt: skip
