"""From a question about quality to a job: which files, which model, which id."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple

from serve.artifacts import read_artifact, read_champion
from serve.clock import now_ms
from serve.errors import ArtifactError, InvalidInput, Unavailable
from serve.quality.estimates import MODEL, no_model
from serve.quality.files import find_file
from serve.quality.jobs import JobStore, QualityLimits, name_of
from serve.quality.schemas import QualityRequest, Side, Task
from serve.schemas import STALE_MODEL

MEDIA_VARIABLE: Final = "PLAYHEAD_MEDIA"
_VMAF: Final = "vmaf"
_COPIED: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class IntakeSettings:
    """What jobs are made with.

    Attributes:
        media: the folder that files may lie in; None refuses all but uploads.
        models: folder of model artifacts.
        device: of an engine: cpu, torch, cuda or auto.
        limits: bounds of a job.
    """

    media: Path | None
    models: Path
    device: Literal["cpu", "torch", "cuda", "auto"]
    limits: QualityLimits


class Live(NamedTuple):
    """What estimates now.

    Attributes:
        version: of the model `quality`; None: as the models' folder says.
        stale: whether it stands in for one that can't be loaded.
    """

    version: str | None
    stale: bool = False


class Intake:
    """Takes questions in.

    Args:
        settings: what jobs are made with.
        store: where jobs go.
        live: what estimates now.
    """

    def __init__(
        self,
        settings: IntakeSettings,
        store: JobStore,
        live: Callable[[], Live] = lambda: Live(None),
    ) -> None:
        self._settings = settings
        self._store = store
        self._live = live
        self._known: dict[str, tuple[Path, tuple[str, ...]]] = {}

    def ask(self, request: QualityRequest, uploaded: Mapping[Side, BinaryIO] | None = None) -> str:
        """The id of the job that answers a question; it is queued where it is new. Reads files: not on an event loop.

        Args:
            request: what is asked; not of segments.
            uploaded: files that came with it, each in the place of a path.

        Raises:
            Unavailable: no media folder, no artifact, or too many jobs wait.
            NotFound: a path names no file under the media folder.
            InvalidInput: what is asked does not go together, or the artifact has no such model.
        """
        uploaded = uploaded or {}
        check_form(request)
        assert request.distorted is not None
        limits = self._settings.limits
        sides: dict[Side, str | None] = {"reference": request.reference, "distorted": request.distorted}
        named = {side: given for side, given in sides.items() if given is not None and side not in uploaded}
        media = self._media() if named else None
        files = {side: find_file(media, given, side) for side, given in named.items() if media is not None}
        live = self._live() if request.reference is None else Live(None)
        artifact, model = self._model(request, live.version)
        task = Task(
            reference=request.reference, distorted=request.distorted, uploaded=tuple(sorted(uploaded)), model=model,
            every=request.every, display_height=request.display_height, media=None if media is None else str(media),
            artifact=str(artifact), device=self._settings.device, deadline_s=limits.deadline_s, created_ts=now_ms(),
            degraded=(STALE_MODEL,) if live.stale else (),
            limits=limits.model_dump(
                include={"max_bytes", "max_duration_s", "max_frames", "max_pixels", "deadline_s", "threads"}
            ),
        )  # fmt: skip
        try:
            if not uploaded:
                name = name_of(task, files, {})
                self._store.add(name, task)
                return name
            with self._store.receiving() as folder:
                name = name_of(task, files, {side: _keep(file, folder / side) for side, file in uploaded.items()})
                self._store.add(name, task, folder)
                return name
        except OSError as error:  # a file that is gone since, or a home folder that is full
            raise Unavailable(
                field="job", got=error.strerror or type(error).__name__, expected="a job that can be written",
                next_step="Ask again; if that does not help, look at the room on the service's disk.",
            ) from error  # fmt: skip

    def _media(self) -> Path:
        media = self._settings.media
        if media is None or not media.is_dir():
            raise Unavailable(
                field=MEDIA_VARIABLE, got="no folder", expected="the folder that clips may lie in",
                next_step=f"Set {MEDIA_VARIABLE} to it where the service is started, and start it again; or upload.",
            )  # fmt: skip
        return media

    def _model(self, request: QualityRequest, version: str | None) -> tuple[Path, str]:
        """Folder of the live version of the model that answers, and what it is called."""
        if request.reference is None:
            return self._artifact(MODEL, version)[0], MODEL
        artifact, models = self._artifact(_VMAF)
        if request.model not in models:
            raise InvalidInput(
                field="model", got=request.model, expected=" or ".join(models), next_step="Name one of these."
            )
        return artifact, request.model

    def _artifact(self, name: str, version: str | None = None) -> tuple[Path, tuple[str, ...]]:
        """Folder of the live version of an artifact, and the VMAF models in it; read once for each version."""
        missing = no_model if name == MODEL else _no_vmaf
        try:
            models_of = self._settings.models
            folder = read_champion(models_of, name) if version is None else models_of / name / version
            if folder is None:
                raise missing("none")
            known = self._known.get(name)
            if known is None or known[0] != folder:
                models = read_artifact(folder).manifest.parameters.get("models")
                known = self._known[name] = (folder, tuple(models) if isinstance(models, dict) else ())
        except ArtifactError as error:
            raise missing(f"one that cannot be read ({error.field})") from error
        return known


def check_form(request: QualityRequest) -> None:
    """Refuse what does not go together.

    Raises:
        InvalidInput: names the field that is missing or too much.
    """
    given = request.model_fields_set
    if request.segments is not None:
        for field in ("reference", "distorted", "model", "every", "display_height"):
            if field in given:
                raise _beside(field, "no `segments` beside it", "Ask for files or for segments.")
    elif request.distorted is None:
        raise InvalidInput(
            field="distorted", got=None, expected="an encode, or facts of bitstreams in `segments`",
            next_step="Name the clip that is to be measured; with `reference`, the clip that it is held against.",
        )  # fmt: skip
    elif request.reference is None:
        for field in ("model", "every"):
            if field in given:
                raise _beside(field, "a `reference` beside it", "Name the reference, or leave this out.")
    elif request.display_height is not None:
        raise _beside(
            "display_height", "no `reference` beside it", "Leave it out: encodes are scaled to the reference."
        )


def _beside(field: str, expected: str, next_step: str) -> InvalidInput:
    return InvalidInput(field=field, got="one", expected=expected, next_step=next_step)


def _keep(file: BinaryIO, path: Path) -> str:
    """Copy an uploaded file; gives its content's hash."""
    file.seek(0)
    with path.open("xb") as kept:
        shutil.copyfileobj(file, kept, _COPIED)
    with path.open("rb") as kept:
        return hashlib.file_digest(kept, "sha256").hexdigest()


def _no_vmaf(got: str) -> Unavailable:
    return Unavailable(
        field=_VMAF, got=got, expected="the artifact of the VMAF models",
        next_step="Make it with `playhead eval quality` or `playhead train quality`, then ask again.",
    )  # fmt: skip
