"""Quality jobs with real workers on real clips: right answers, bounds, cancelling, and whatever dies."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import psutil
import pytest

from serve.artifacts import read_artifact
from serve.clock import now_ms
from serve.errors import InvalidInput, NotFound, PlayheadError, Unavailable
from serve.quality.files import find_file
from serve.quality.intake import Intake, IntakeSettings, Live
from serve.quality.jobs import LOG, MAX_ATTEMPTS, SCRATCH, UPLOADS, Job, JobStore, QualityLimits
from serve.quality.noreference import NoReferenceScorer
from serve.quality.runner import QualityRunner
from serve.quality.schemas import EstimateReport, QualityReport, QualityRequest, Status
from serve.quality.scorer import FullReferenceScorer
from tests.contracts.small_model import resealed_artifact
from tests.serve.gateway.conftest import install_model
from tests.serve.quality.conftest import Clip
from tests.serve.quality.small_quality import small_quality
from tests.serve.quality.small_vmaf import small_vmaf
from tests.waiting import HUNG_S, eventually

LONG_FILM = "testsrc2=s=1280x720:rate=25,format=yuv420p"


@pytest.fixture
def media(tmp_path: Path, film: Path, clip: Clip) -> Path:
    """A media folder with a film, an encode of it, and a pair that takes minutes."""
    folder = tmp_path / "media"
    (folder / "encodes").mkdir(parents=True)
    coded = clip("crf38.mp4", "-i", film, "-c:v", "libx264", "-preset", "ultrafast", "-crf", "38")
    long = clip(
        "long.mp4", "-f", "lavfi", "-i", LONG_FILM, "-frames:v", "600", "-c:v", "libx264", "-preset", "ultrafast"
    )  # fmt: skip
    sound = clip("sound.mp4", "-f", "lavfi", "-i", "sine=d=1")
    shutil.copy(sound, folder / "sound.mp4")
    shutil.copy(film, folder / "film.mkv")
    shutil.copy(coded, folder / "encodes" / "film.mp4")
    shutil.copy(long, folder / "long.mp4")
    shutil.copy(long, folder / "encodes" / "long.mp4")
    return folder


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Everything behind the routes, without them."""

    store: JobStore
    intake: Intake
    runner: QualityRunner
    media: Path

    def ask(self, reference: str | None = "film.mkv", distorted: str = "encodes/film.mp4", **more: object) -> str:
        return self.intake.ask(QualityRequest(reference=reference, distorted=distorted, **more))  # type: ignore[arg-type]

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


Opener = Callable[..., Desk]


@pytest.fixture
def open_desk(tmp_path: Path, media: Path) -> Opener:
    home = tmp_path / "home"
    install_model(home, small_vmaf(), "vmaf")
    install_model(home, small_quality(), "quality")

    def make(**limits: float) -> Desk:
        bounds = QualityLimits(**limits)  # type: ignore[arg-type]
        store = JobStore(home / "quality", bounds)
        settings = IntakeSettings(media=media, models=home / "models", device="cpu", limits=bounds)
        return Desk(
            store=store, intake=Intake(settings, store), runner=QualityRunner(store, bounds.running), media=media
        )  # fmt: skip

    return make


async def until(desk: Desk, name: str, wanted: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + HUNG_S
    while not wanted(job := desk.store.read(name, with_report=True)):
        assert time.monotonic() < deadline, (job, _log(desk, name))
        await asyncio.sleep(0.05)
    return job


def _log(desk: Desk, name: str) -> str:
    path = desk.store.folder / name / LOG
    return path.read_text() if path.exists() else ""


def workers() -> list[psutil.Process]:
    """Workers of this process, with all that they started."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "valkey" not in child.name()
    ]


async def gone(processes: list[psutil.Process]) -> None:
    await eventually(
        lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    )


def scratches(folder: Path) -> list[Path]:
    return list(folder.glob(f"*/{SCRATCH}"))


async def swept(folder: Path) -> None:
    """Wait until no job has temporary files."""
    await eventually(lambda: not scratches(folder))


def is_running(job: Job) -> bool:
    return job.status.state == "running" and job.status.done > 0


async def test_report_is_the_scorers(open_desk: Opener) -> None:
    desk = open_desk()
    name = desk.ask(every=2)
    async with desk.working():
        job = await until(desk, name, lambda job: job.ended)
    assert job.status.state == "finished", (job, _log(desk, name))
    assert job.report is not None
    report = QualityReport.model_validate_json(job.report)
    expected = FullReferenceScorer(read_artifact(small_vmaf()), "cpu").score(
        desk.media / "film.mkv", desk.media / "encodes" / "film.mp4", backend="libvmaf", every=2
    )
    assert report.pooled.model_dump() == pytest.approx(asdict(expected.pooled))
    assert [frame.vmaf for frame in report.frames] == pytest.approx(expected.scores.tolist())
    assert [frame.frame for frame in report.frames] == expected.indices.tolist() == list(range(0, 80, 2))
    assert [frame.time_s for frame in report.frames] == pytest.approx(expected.times_s.tolist())
    assert report.corrections == expected.alignment.corrections
    assert (report.backend, report.model, report.version) == ("libvmaf", "vmaf_v0.6.1", small_vmaf().name)
    assert (job.status.done, job.status.total) == (80, 80)
    assert not (desk.store.folder / name / SCRATCH).exists()


@pytest.mark.parametrize("display_height", [None, 720])
async def test_estimate_is_the_scorers(open_desk: Opener, display_height: int | None) -> None:
    desk = open_desk()
    name = desk.ask(None, display_height=display_height)
    async with desk.working():
        job = await until(desk, name, lambda job: job.ended)
    assert job.report is not None, (job, _log(desk, name))
    report = EstimateReport.model_validate_json(job.report)
    expected = NoReferenceScorer(read_artifact(small_quality()), "cpu").score(
        desk.media / "encodes" / "film.mp4", display_height=display_height
    )
    assert report.clip.model_dump() == pytest.approx(asdict(expected.clip))
    assert len(report.segments) == len(expected.segments) == 1
    assert (report.method, report.coverage, report.version) == ("both", 0.9, small_quality().name)
    assert (job.status.done, job.status.total) == (80, 80)
    assert desk.ask(None, display_height=display_height) == name != desk.ask(None, display_height=1000)


async def test_estimate_of_what_cannot_be_shown_names_the_field(open_desk: Opener) -> None:
    desk = open_desk()
    names = [desk.ask(None, "encodes/long.mp4", display_height=300), desk.ask(None, "sound.mp4")]
    async with desk.working():
        low, sound = [await until(desk, name, lambda job: job.ended) for name in names]
    assert low.status.problem is not None
    assert (low.status.problem.field, low.status.problem.status) == ("display_height", 422)
    assert sound.status.problem is not None
    assert (sound.status.problem.field, sound.status.problem.got) == ("distorted", "'no video stream'")


async def test_uploads_last_as_long_as_their_job(open_desk: Opener) -> None:
    desk = open_desk()
    film, coded = desk.media / "film.mkv", desk.media / "encodes" / "film.mp4"

    def upload(distorted: Path = coded, **more: object) -> str:
        request = QualityRequest(reference="film.mkv", distorted="mine.mp4", **more)  # type: ignore[arg-type]
        with distorted.open("rb") as file:
            return desk.intake.ask(request, {"distorted": file})

    name, cancelled, broken = upload(), upload(every=2), upload(desk.media / "sound.mp4")
    assert upload() == name
    assert sorted(path.name for path in desk.store.folder.iterdir()) == sorted([name, cancelled, broken])
    by_path = desk.ask()
    assert by_path != name
    desk.store.cancel(by_path)
    assert (desk.store.folder / name / UPLOADS / "distorted").read_bytes() == coded.read_bytes()
    desk.store.cancel(cancelled)
    assert not (desk.store.folder / cancelled / UPLOADS).exists()
    async with desk.working():
        jobs = [await until(desk, which, lambda job: job.ended) for which in (name, broken)]
        await swept(desk.store.folder)
    assert [job.status.state for job in jobs] == ["finished", "failed"], _log(desk, name)
    assert jobs[1].status.problem is not None
    assert jobs[1].status.problem.field == "distorted"
    assert str(desk.store.folder) not in jobs[1].status.model_dump_json()
    assert not list(desk.store.folder.glob(f"*/{UPLOADS}"))
    expected = FullReferenceScorer(read_artifact(small_vmaf()), "cpu").score(film, coded, backend="libvmaf")
    assert jobs[0].report is not None
    assert QualityReport.model_validate_json(jobs[0].report).pooled.mean == pytest.approx(expected.pooled.mean)
    assert upload(every=2) == cancelled
    assert desk.store.read(cancelled).status.state == "queued"
    assert (desk.store.folder / cancelled / UPLOADS / "distorted").exists(), "asked again, it brings its file again"


def test_uploads_need_no_media_folder_and_no_room_that_is_not_there(open_desk: Opener, tmp_path: Path) -> None:
    desk = open_desk(waiting=1)
    settings = IntakeSettings(
        media=None, models=tmp_path / "home" / "models", device="cpu", limits=QualityLimits(waiting=1)
    )
    intake = Intake(settings, desk.store)
    with (desk.media / "film.mkv").open("rb") as one, (desk.media / "encodes" / "film.mp4").open("rb") as other:
        intake.ask(QualityRequest(reference="a", distorted="b"), {"reference": one, "distorted": other})
        with pytest.raises(Unavailable, match="Set PLAYHEAD_MEDIA"):
            intake.ask(QualityRequest(reference="film.mkv", distorted="b"), {"distorted": other})
        with pytest.raises(Unavailable, match="fewer than 1"):
            intake.ask(QualityRequest(distorted="b"), {"distorted": other})
    assert len(list(desk.store.folder.iterdir())) == 1, "what was refused leaves nothing"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../secret.mp4", "encodes/../../secret.mp4", "..", ".", "", "out.mp4", "outside/secret.mp4",
        "dangling.mp4", "nothing.mp4", "encodes", "loop", "pipe", "a\0b", "x" * 5000, "~/secret.mp4",
    ],
)  # fmt: skip
def test_paths_stay_within_the_folder(media: Path, path: str) -> None:
    secret = media.parent / "secret.mp4"
    secret.write_bytes(b"secret")
    (media / "out.mp4").symlink_to(secret)
    (media / "outside").symlink_to(media.parent)
    (media / "dangling.mp4").symlink_to(media.parent / "nothing.mp4")
    (media / "loop").symlink_to("loop")
    os.mkfifo(media / "pipe")
    with pytest.raises(NotFound) as caught:
        find_file(media, path, "reference")
    assert caught.value.field == "reference"
    assert caught.value.expected == "the path of a file under the media folder, relative to it"
    assert str(media) not in str(caught.value)


def test_links_within_the_folder_are_followed(media: Path) -> None:
    (media / "within.mkv").symlink_to("film.mkv")
    assert find_file(media, "within.mkv", "reference") == (media / "film.mkv").resolve()
    alias = media.parent / "alias"
    alias.symlink_to(media)
    assert find_file(alias, "encodes/film.mp4", "reference") == (media / "encodes" / "film.mp4").resolve()


def test_the_same_question_is_one_job(open_desk: Opener) -> None:
    desk = open_desk()
    name = desk.ask()
    assert desk.ask() == desk.ask(wait_s=0.0) == desk.ask(distorted="encodes/./film.mp4") == name
    assert len(desk.store.open_jobs()) == 1
    others = {desk.ask(every=3), desk.ask(model="vmaf_v0.6.1neg"), desk.ask("encodes/film.mp4", "film.mkv")}
    others.add(open_desk(max_duration_s=60).ask())  # what was refused under other limits may be taken now
    os.utime(desk.media / "film.mkv", (1, 1))
    assert len(others | {name, desk.ask()}) == 6


def test_no_more_than_so_many_wait(open_desk: Opener) -> None:
    desk = open_desk(waiting=2)
    names = [desk.ask(every=number) for number in (1, 2)]
    with pytest.raises(Unavailable, match="fewer than 2"):
        desk.ask(every=3)
    assert desk.ask(every=2) == names[1]
    desk.store.cancel(names[0])
    desk.ask(every=3)


def test_what_is_missing_is_named(open_desk: Opener, tmp_path: Path) -> None:
    desk = open_desk()
    with pytest.raises(InvalidInput, match=r"vmaf_v0\.6\.1 or vmaf_v0\.6\.1neg"):
        desk.ask(model="vmaf_v9")
    settings = IntakeSettings(media=None, models=tmp_path, device="cpu", limits=QualityLimits())
    request = QualityRequest(reference="film.mkv", distorted="film.mkv")
    with pytest.raises(Unavailable, match="Set PLAYHEAD_MEDIA"):
        Intake(settings, desk.store).ask(request)
    settings = IntakeSettings(media=desk.media, models=tmp_path, device="cpu", limits=QualityLimits())
    with pytest.raises(Unavailable, match="playhead eval quality"):
        Intake(settings, desk.store).ask(request)


def test_the_version_that_answers_estimates_whatever_the_folder_names(open_desk: Opener, tmp_path: Path) -> None:
    desk, models = open_desk(), tmp_path / "home" / "models"
    settings = IntakeSettings(media=desk.media, models=models, device="cpu", limits=QualityLimits())
    named = small_quality().name
    live = resealed_artifact(
        read_artifact(small_quality()), tmp_path / "made",
        lambda _path, manifest: manifest.model_copy(update={"parameters": {**manifest.parameters, "mark": 1}}),
    )  # fmt: skip

    shutil.copytree(live.path, models / "quality" / live.version)

    def asked(version: str | None, encode: str, *, stale: bool = False) -> Job:
        if not (desk.media / encode).exists():
            shutil.copy(desk.media / "film.mkv", desk.media / encode)
        name = Intake(settings, desk.store, lambda: Live(version, stale)).ask(QualityRequest(distorted=encode))
        return desk.store.read(name)

    def artifact_of(version: str | None, encode: str) -> str:
        return Path(asked(version, encode).task.artifact).name

    assert artifact_of(live.version, "one.mkv") == live.version != named
    assert artifact_of(None, "two.mkv") == named, "nothing is loaded yet"
    with pytest.raises(Unavailable, match="cannot be read"):
        artifact_of("0" * 12, "three.mkv")
    standing_in, champion = asked(live.version, "one.mkv", stale=True), asked(live.version, "one.mkv")
    assert (standing_in.task.degraded, champion.task.degraded) == (("stale_model",), ())
    assert standing_in.name != champion.name, "it says of itself that it is no champion's"


@pytest.mark.parametrize(
    ("limits", "damage", "field", "got"),
    [
        ({}, b"no video at all" * 100, "distorted", "no readable media"),
        ({}, None, "distorted", "cut off"),
        ({"max_duration_s": 1.0}, b"", "reference", "s"),
        ({"max_pixels": 100 * 100}, b"", "reference", "picture size"),
        ({"max_bytes": 1000}, b"", "reference", "bytes"),
    ],
)
async def test_broken_media_fail_with_the_reason(
    open_desk: Opener, limits: dict[str, float], damage: bytes | None, field: str, got: str
) -> None:
    desk = open_desk(**limits)
    path = desk.media / "encodes" / "film.mp4"
    if damage is None:
        path.write_bytes((desk.media / "film.mkv").read_bytes()[:-200_000])
    elif damage:
        path.write_bytes(damage)
    name = desk.ask()
    async with desk.working():
        job = await until(desk, name, lambda job: job.ended)
    assert job.status.state == "failed"
    problem = job.status.problem
    assert problem is not None
    assert (problem.field, problem.status) == (field, 422), problem
    assert got in problem.got
    assert problem.expected
    assert problem.next_step
    assert str(desk.media) not in problem.model_dump_json()
    assert desk.ask() == name
    assert desk.store.read(name).status.state == "failed", "what is wrong with a clip stays wrong"
    assert not (desk.store.folder / name / SCRATCH).exists()


async def test_cancelling_ends_the_worker_and_all_it_started(
    open_desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAYHEAD_API_TOKEN", "secret")
    desk = open_desk()
    name = desk.ask("long.mp4", "encodes/long.mp4")
    async with desk.working():
        job = await until(desk, name, is_running)
        assert job.status.total == 600
        ours = workers()
        assert len(ours) >= 2
        assert not any("PLAYHEAD_API_TOKEN" in process.environ() for process in ours)
        assert all(process.nice() >= 10 for process in ours)
        desk.store.cancel(name)
        assert desk.store.read(name).status.state == "cancelled"
        await gone(ours)
        await swept(desk.store.folder)
        assert desk.ask("long.mp4", "encodes/long.mp4") == name
        assert desk.store.read(name).status.state == "queued", "asked again, it begins anew"
        desk.store.cancel(name)


async def test_killed_worker_is_replaced_until_it_is_too_often(open_desk: Opener) -> None:
    desk = open_desk()
    name = desk.ask("long.mp4", "encodes/long.mp4")
    async with desk.working():
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await until(desk, name, lambda job, attempt=attempt: is_running(job) and job.status.attempts == attempt)
            (worker,) = [child for child in workers() if "serve.quality.worker" in child.cmdline()]
            worker.send_signal(signal.SIGKILL)
        job = await until(desk, name, lambda job: job.ended)
    assert job.status.state == "failed"
    assert job.status.problem is not None
    assert job.status.problem.got == repr(f"{MAX_ATTEMPTS} workers that died")
    assert not workers()


async def test_worker_that_cannot_start_fails_the_job(open_desk: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    desk = open_desk()
    name = desk.ask()
    async with desk.working():
        job = await until(desk, name, lambda job: job.ended)
    assert job.status.problem is not None
    assert job.status.problem.status == 503


async def test_deadline_ends_a_job(open_desk: Opener) -> None:
    desk = open_desk(deadline_s=2.0)
    name = desk.ask("long.mp4", "encodes/long.mp4")
    async with desk.working():
        job = await until(desk, name, lambda job: job.ended)
        assert job.status.problem is not None
        assert "no end within 2 s" in job.status.problem.got
        await gone(workers())


async def test_restart_takes_up_what_was_left(open_desk: Opener) -> None:
    first = open_desk()
    name = first.ask()
    first.store.write(name, Status(state="running", updated_ts=now_ms(), done=7, attempts=1))  # by a dead worker
    (first.store.folder / name / SCRATCH).mkdir()
    (first.store.folder / name / SCRATCH / "left.json").touch()
    second = open_desk()
    async with second.working():
        job = await until(second, name, lambda job: job.ended)
    assert job.status.state == "finished"
    assert job.status.attempts == 2
    assert not (first.store.folder / name / SCRATCH).exists()


async def test_stopping_a_replica_puts_its_job_back(open_desk: Opener) -> None:
    first, second = open_desk(), open_desk()
    name = first.ask("long.mp4", "encodes/long.mp4")
    async with first.working():
        await until(first, name, is_running)
    assert not workers()
    status = second.store.read(name).status
    assert (status.state, status.attempts) == ("queued", 0)
    async with second.working():
        await until(second, name, is_running)


async def test_worker_dies_with_its_replica(open_desk: Opener) -> None:
    desk = open_desk()
    name = desk.ask("long.mp4", "encodes/long.mp4")
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom serve.quality.jobs import JobStore, QualityLimits\n"
        "from serve.quality.runner import QualityRunner\n"
        "asyncio.run(QualityRunner(JobStore(Path(sys.argv[1]), QualityLimits()), 1).run())\n"
    )
    replica = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(desk.store.folder))
    try:
        await until(desk, name, is_running)
        ours = psutil.Process(replica.pid).children(recursive=True)
        assert ours
    finally:
        replica.kill()
        await replica.wait()
    await gone(ours)
    async with desk.working():
        await until(desk, name, lambda job: is_running(job) and job.status.attempts == 2)


async def test_one_replica_runs_one_job_and_two_never_the_same(open_desk: Opener) -> None:
    first, second = open_desk(), open_desk()
    name = first.ask("long.mp4", "encodes/long.mp4")
    waiting = first.ask("encodes/long.mp4", "long.mp4")
    async with first.working():
        await until(first, name, is_running)
        await asyncio.sleep(0.3)
        assert first.store.read(waiting).status.state == "queued"
        async with second.working():
            await until(second, waiting, is_running)
            attempts = [first.store.read(job).status.attempts for job in (name, waiting)]
            assert attempts == [1, 1]


async def test_two_replicas_that_start_the_same_job_do_it_once(open_desk: Opener) -> None:
    first, second = open_desk(), open_desk()
    name = first.ask("long.mp4", "encodes/long.mp4")
    first.runner._tick()
    second.runner._tick()
    assert len(workers()) == 2
    async with first.working(), second.working():
        job = await until(first, name, is_running)
        assert job.status.attempts == 1
        await eventually(lambda: len(first.runner._children) + len(second.runner._children) == 1)
        assert first.store.read(name).status.attempts == 1


def test_damaged_job_is_begun_anew(open_desk: Opener) -> None:
    desk = open_desk()
    name = desk.ask()
    (desk.store.folder / name / "state.json").write_bytes(b'{"state": "runn')
    with pytest.raises(NotFound):
        desk.store.read(name)
    assert desk.ask() == name
    assert desk.store.read(name).status.state == "queued"


def test_old_jobs_are_removed(open_desk: Opener) -> None:
    desk = open_desk(kept=2)
    names = [desk.ask(every=number) for number in range(1, 6)]
    for age, name in enumerate(names[:4]):
        desk.store.write(name, Status(state="finished", updated_ts=now_ms() + age))
    newest = desk.ask(every=9)
    left = {path.name for path in desk.store.folder.iterdir()}
    assert left == {names[2], names[3], names[4], newest}
    with pytest.raises(NotFound):
        desk.store.read(names[0])
    old = open_desk(kept_s=3600)
    old.store.write(names[2], Status(state="failed", updated_ts=now_ms() - 3_700_000))
    old.ask(every=10)
    assert not (old.store.folder / names[2]).exists()


def test_gateway_imports_nothing_of_video() -> None:
    code = "import sys, serve.gateway.application; print([m for m in ('av', 'scipy', 'torch') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"


def test_worker_imports_no_torch() -> None:
    code = "import sys, serve.quality.worker; print([m for m in ('torch', 'ray') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"


def test_kept_problem_is_the_error_again(open_desk: Opener) -> None:
    from serve.quality.alignment import Misaligned  # noqa: PLC0415
    from serve.quality.jobs import error_of, problem_of  # noqa: PLC0415

    for kind in (InvalidInput, NotFound, Unavailable, Misaligned):
        error: PlayheadError = kind(field="a", got="b", expected="c", next_step="d")
        again = error_of(problem_of(error))
        assert (again.title, again.status, str(again)) == (error.title, error.status, str(error))
        assert orjson.loads(problem_of(error).model_dump_json())["got"] == "'b'"
