"""POST, GET and DELETE /v1/quality in one process, with real workers on real clips."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.arguments import Arguments
from serve.artifacts import read_artifact
from serve.quality.jobs import QualityLimits
from serve.quality.noreference import NoReferenceScorer
from serve.quality.schemas import EstimateReport, QualityEstimate, QualityJob, QualityReport
from serve.quality.scorer import FullReferenceScorer
from tests.serve.gateway.conftest import OpenClient, install_model
from tests.serve.quality.conftest import clip, film
from tests.serve.quality.small_quality import small_quality
from tests.serve.quality.small_vmaf import small_vmaf
from tests.serve.quality.test_jobs import gone, media, swept, workers
from tests.waiting import eventually

__all__ = ["clip", "film", "media"]

PAIR: dict[str, Any] = {"reference": "film.mkv", "distorted": "encodes/film.mp4"}
LONG: dict[str, Any] = {"reference": "long.mp4", "distorted": "encodes/long.mp4"}


@pytest.fixture
def measuring(arguments: Arguments, media: Path) -> Arguments:
    """Arguments of a gateway with a media folder and VMAF's artifact."""
    assert arguments.home is not None
    install_model(arguments.home, small_vmaf(), "vmaf")
    install_model(arguments.home, small_quality(), "quality")
    return arguments.model_copy(update={"media": media})


def job_of(answer: httpx.Response, status: int = 200) -> QualityJob:
    assert answer.status_code == status, answer.text
    job = QualityJob.model_validate_json(answer.content)
    assert job.request_id == answer.headers["x-request-id"]
    return job


def problem_of(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert set(error) == {"field", "got", "expected", "next_step"}
    return dict(error)


async def answered(client: httpx.AsyncClient, **question: Any) -> httpx.Response:
    """What comes of a question that waits: asked again where a busy machine needs longer than one answer may take."""
    deadline = time.monotonic() + 120
    while True:
        began = time.monotonic()
        answer = await client.post("/v1/quality", **question)
        if answer.status_code != httpx.codes.ACCEPTED:
            return answer
        assert time.monotonic() - began > 7, "it did not wait"
        assert time.monotonic() < deadline, answer.text


async def ended(client: httpx.AsyncClient, name: str) -> QualityJob:
    deadline = time.monotonic() + 60
    while (job := job_of(await client.get(f"/v1/quality/{name}"))).state in {"queued", "running"}:
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.05)
    return job


async def running(client: httpx.AsyncClient, name: str) -> QualityJob:
    deadline = time.monotonic() + 60
    while not (job := job_of(await client.get(f"/v1/quality/{name}"))).progress.done:
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.05)
    return job


async def test_report_of_a_short_clip_comes_at_once(measuring: Arguments, media: Path, open_client: OpenClient) -> None:
    async with open_client(measuring) as client:
        job = job_of(await answered(client, json=PAIR | {"wait_s": 8}))
        again = job_of(await client.post("/v1/quality", json=PAIR | {"wait_s": 0}))
    assert job.state == "finished"
    assert isinstance(job.report, QualityReport)
    expected = FullReferenceScorer(read_artifact(small_vmaf()), "cpu").score(
        media / PAIR["reference"], media / PAIR["distorted"], backend="libvmaf"
    )
    assert job.report.pooled.mean == pytest.approx(expected.pooled.mean)
    assert [frame.vmaf for frame in job.report.frames] == pytest.approx(expected.scores.tolist())
    assert job.report.version == small_vmaf().name
    assert (again.job, again.report, again.created_ts) == (job.job, job.report, job.created_ts)


async def test_clip_without_a_reference_is_estimated(
    measuring: Arguments, media: Path, open_client: OpenClient
) -> None:
    async with open_client(measuring) as client:
        asked = {"distorted": PAIR["distorted"], "display_height": 720, "wait_s": 8}
        job = job_of(await answered(client, json=asked))
        models = (await client.get("/v1/models")).json()["models"]
    assert isinstance(job.report, EstimateReport)
    assert (job.reference, job.model, job.display_height) == (None, "quality", 720)
    expected = NoReferenceScorer(read_artifact(small_quality()), "cpu").score(
        media / PAIR["distorted"], display_height=720
    )
    assert job.report.clip.vmaf == pytest.approx(expected.clip.vmaf)
    assert (job.report.segment_s, job.report.method) == (4.0, "both")
    assert {"quality": "live"}.items() <= {model["name"]: model["state"] for model in models}.items()


SEGMENT: dict[str, Any] = {
    "codec": "hevc", "width": 1280, "height": 720, "display_height": 1080, "fps": 25, "duration_s": 4,
    "size_bytes": 900_000,
}  # fmt: skip


@pytest.mark.parametrize("count", [1, 1000])
async def test_facts_are_answered_at_once(measuring: Arguments, open_client: OpenClient, count: int) -> None:
    framed = {"frame_bytes": [600_000, 300_000], "frame_kinds": ["key", "other"], "duration_s": 0.08}
    segments = [SEGMENT | framed, *[SEGMENT | {"size_bytes": 10_000 + place} for place in range(count - 1)]]
    async with open_client(measuring) as client:
        answer = await client.post("/v1/quality", json={"segments": segments})
        assert answer.status_code == 200, answer.text
        found = QualityEstimate.model_validate_json(answer.content)
    assert found.request_id == answer.headers["x-request-id"]
    assert len(found.report.segments) == count
    assert (found.report.method, found.report.segment_s) == ("bitstream", None)
    assert found.report.version == small_quality().name
    assert all(0 <= one.low <= one.vmaf <= one.high <= 100 for one in found.report.segments)
    assert not (measuring.settings().home / "quality").exists(), "no job, nothing on disk"


@pytest.mark.parametrize(
    ("body", "field", "next_step"),
    [
        ({}, "distorted", "Name the clip"),
        ({"reference": "film.mkv"}, "distorted", "Name the clip"),
        ({"distorted": "a.mp4", "every": 2}, "every", "Name the reference"),
        ({"distorted": "a.mp4", "model": "vmaf_v0.6.1"}, "model", "Name the reference"),
        (PAIR | {"display_height": 1080}, "display_height", "Leave it out"),
        ({"segments": [SEGMENT], "distorted": "a.mp4"}, "distorted", "Ask for files or for segments."),
        ({"segments": []}, "segments", ""),
        ({"segments": [SEGMENT, SEGMENT | {"display_height": 360}]}, "segments[1].display_height", "Give the height"),
        ({"segments": [SEGMENT | {"frame_bytes": [5], "frame_kinds": ["key"]}]}, "segments[0].frame_bytes", ""),
        ({"segments": [SEGMENT | {"frame_kinds": ["key"]}]}, "segments[0].frame_kinds", ""),
        ({"segments": [SEGMENT | {"codec": "mpeg2"}]}, "segments[0].codec", ""),
        ({"segments": [SEGMENT | {"fps": 0}]}, "segments[0].fps", ""),
    ],
)
async def test_what_does_not_go_together_is_refused(
    measuring: Arguments, open_client: OpenClient, body: dict[str, Any], field: str, next_step: str
) -> None:
    async with open_client(measuring) as client:
        problem = problem_of(await client.post("/v1/quality", json=body), 422)
        assert problem["field"] == field
        assert problem["next_step"].startswith(next_step)


async def test_files_may_come_along(measuring: Arguments, media: Path, open_client: OpenClient) -> None:
    folder = measuring.settings().home / "quality"
    coded = (media / PAIR["distorted"]).read_bytes()
    both = {"reference": ("r.mkv", (media / "film.mkv").read_bytes()), "distorted": ("../d.mp4", coded)}
    async with open_client(measuring) as client:
        by_path = job_of(await answered(client, json=PAIR | {"wait_s": 8}))
        job = job_of(await answered(client, files=both, data={"wait_s": "8"}))
        again = job_of(await client.post("/v1/quality", files=both, data={"wait_s": "0"}))
        form = {"reference": "film.mkv", "every": "2", "wait_s": "8"}
        files = {"distorted": ("d.mp4", coded)}
        mixed = job_of(await answered(client, files=files, data=form))
        form = {"wait_s": "8"}
        alone = job_of(await answered(client, files={"distorted": coded}, data=form))
        assert (job.reference, job.distorted, again.job) == ("r.mkv", "d.mp4", job.job)
        assert isinstance(job.report, QualityReport)
        assert isinstance(by_path.report, QualityReport)
        assert job.report.frames == by_path.report.frames
        assert isinstance(mixed.report, QualityReport)
        assert mixed.report.frames == by_path.report.frames[::2]
        assert isinstance(alone.report, EstimateReport)
        await swept(folder)
        assert not list(folder.glob("*/uploads"))
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("files", "data", "status", "field"),
    [
        ({"distorted": b"no video"}, {"wait_s": "8"}, 422, "distorted"),
        ({"distorted": b""}, {"wait_s": "8"}, 422, "distorted"),
        ({"distorted": b"x" * 300_000}, {}, 413, "body"),
        ({"other": b"x"}, {}, 422, "other"),
        ({"distorted": b"x"}, {"every": "many", "reference": "film.mkv"}, 422, "every"),
        ({"distorted": b"x"}, {"evry": "2"}, 422, "evry"),
        ({"distorted": b"x"}, {"distorted": "film.mkv"}, 422, "distorted"),
        ({"distorted": b"x", "reference": b"y"}, {"segments": "[]"}, 422, "segments"),
        ({"distorted": b"x"}, {"reference": "../../etc/passwd"}, 404, "reference"),
        ({"distorted": b"x"}, {"reference": "r" * 5000}, 400, "body"),
    ],
)
async def test_bad_forms_are_refused_and_leave_nothing(
    measuring: Arguments, open_client: OpenClient, files: dict[str, bytes], data: dict[str, str], status: int,
    field: str,
) -> None:  # fmt: skip
    bounded = measuring.model_copy(update={"quality": QualityLimits(max_upload_bytes=200_000)})
    async with open_client(bounded) as client:
        answer = await answered(client, files=files, data=data)
        assert problem_of(answer, status)["field"] == field
        folder = bounded.settings().home / "quality"
        if folder.exists():
            await swept(folder)
            assert not list(folder.glob("*/uploads"))
            assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", b"--a\r\n", 400),
        ("multipart/form-data; boundary=a", b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--", 400),
        ("multipart/form-data; boundary=a", b"--a\r\nnonsense\r\n\r\n", 400),
        ("multipart/form-data; boundary=a", b"", 422),
        ("text/plain", b"{}", 415),
        ("", b"{}", 415),
    ],
)
async def test_what_is_no_form_is_refused(
    measuring: Arguments, open_client: OpenClient, kind: str, body: bytes, status: int
) -> None:
    async with open_client(measuring) as client:
        headers = {"content-type": kind} if kind else {}
        assert (await client.post("/v1/quality", content=body, headers=headers)).status_code == status


@pytest.mark.timed
async def test_slow_upload_is_given_up_at_the_callers_deadline(measuring: Arguments, open_client: OpenClient) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"--a\r\nContent-Disposition: form-data; name=distorted; filename=a\r\n\r\n"
        await asyncio.sleep(30)

    headers = {"content-type": "multipart/form-data; boundary=a", "x-request-timeout-seconds": "0.3"}
    async with open_client(measuring) as client:
        started = time.monotonic()
        answer = await client.post("/v1/quality", content=slowly(), headers=headers)
        assert problem_of(answer, 408)["field"] == "body"
        assert time.monotonic() - started < 5


async def test_only_so_many_uploads_at_a_time(measuring: Arguments, open_client: OpenClient) -> None:
    let_go = asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        yield b"--a\r\n"
        await let_go.wait()
        yield b"--a--"

    headers = {"content-type": "multipart/form-data; boundary=a"}
    bounded = measuring.model_copy(update={"quality": QualityLimits(uploads=1)})
    async with open_client(bounded) as client:
        first = asyncio.create_task(client.post("/v1/quality", content=held(), headers=headers))
        await asyncio.sleep(0.2)
        answer = await client.post("/v1/quality", files={"distorted": b"x"})
        assert "uploads at a time" in problem_of(answer, 503)["got"]
        let_go.set()
        await first
        assert (await client.post("/v1/quality", files={"distorted": b"x"}, data={"wait_s": "0"})).status_code == 202


async def test_without_the_model_estimates_are_unavailable(
    arguments: Arguments, media: Path, open_client: OpenClient
) -> None:
    async with open_client(arguments.model_copy(update={"media": media})) as client:
        for body in ({"segments": [SEGMENT]}, {"distorted": "film.mkv"}):
            problem = problem_of(await client.post("/v1/quality", json=body), 503)
            assert problem["field"] == "quality"
            assert "playhead train quality" in problem["next_step"]


async def test_what_stands_in_for_a_champion_that_is_damaged_says_so(
    measuring: Arguments, open_client: OpenClient
) -> None:
    models = measuring.settings().models / "quality"
    sound = small_quality().name

    async def estimated(client: httpx.AsyncClient) -> tuple[str, tuple[str, ...]]:
        answer = await client.post("/v1/quality", json={"segments": [SEGMENT]})
        found = QualityEstimate.model_validate_json(answer.content)
        return found.report.version, found.degraded

    async with open_client(measuring) as client:
        assert await estimated(client) == (sound, ())
        sure = job_of(await client.post("/v1/quality", json={"distorted": "encodes/film.mp4", "wait_s": 0}), 202)
        assert sure.degraded == ()
        (models / ("0" * 12)).mkdir()
        (models / ("0" * 12) / "manifest.json").write_text("{}")
        (models / "champion").write_text("0" * 12)

        async def is_said() -> bool:
            return await estimated(client) == (sound, ("stale_model",))

        await eventually(is_said)
        assert 'playhead_degraded_total{reason="stale_model"}' in (await client.get("/metrics")).text
        job = job_of(await client.post("/v1/quality", json={"distorted": "encodes/film.mp4", "wait_s": 0}), 202)
        assert job.degraded == ("stale_model",)
        done = await ended(client, job.job)
        assert isinstance(done.report, EstimateReport)
        assert (done.report.version, done.degraded) == (sound, ("stale_model",))
        measured = job_of(await client.post("/v1/quality", json=PAIR | {"wait_s": 0}), 202)
        assert measured.degraded == (), "no estimate"
        (models / "champion").write_text(sound)

        async def is_sound() -> bool:
            return await estimated(client) == (sound, ())

        await eventually(is_sound)
        assert job_of(await client.get(f"/v1/quality/{sure.job}")).degraded == ()


async def test_long_clip_is_a_job_that_can_be_watched_and_cancelled(
    measuring: Arguments, open_client: OpenClient
) -> None:
    async with open_client(measuring) as client:
        answer = await client.post("/v1/quality", json=LONG | {"wait_s": 0})
        job = job_of(answer, 202)
        assert answer.headers["location"] == f"/v1/quality/{job.job}"
        assert job.report is None
        seen = await running(client, job.job)
        assert (seen.state, seen.progress.total) == ("running", 600)
        assert (await client.get("/healthz")).status_code == 200
        ours = workers()
        assert ours
        assert job_of(await client.delete(f"/v1/quality/{job.job}")).state == "cancelled"
        await gone(ours)
        assert job_of(await client.get(f"/v1/quality/{job.job}")).state == "cancelled"
        short = job_of(await client.post("/v1/quality", json=PAIR | {"wait_s": 0}), 202)
        assert (await ended(client, short.job)).report is not None
        assert job_of(await client.delete(f"/v1/quality/{short.job}")).state == "finished"


async def test_next_replica_takes_up_what_one_left(measuring: Arguments, open_client: OpenClient) -> None:
    async with open_client(measuring) as client:
        job = job_of(await client.post("/v1/quality", json=LONG | {"wait_s": 0}), 202)
        await running(client, job.job)
    assert not workers()
    async with open_client(measuring) as client:
        assert job_of(await client.get(f"/v1/quality/{job.job}")).state == "queued"
        await running(client, job.job)


@pytest.mark.timed
async def test_wait_keeps_to_the_callers_deadline(measuring: Arguments, open_client: OpenClient) -> None:
    async with open_client(measuring) as client:
        started = time.monotonic()
        answer = await client.post(
            "/v1/quality", json=LONG | {"wait_s": 8}, headers={"x-request-timeout-seconds": "0.5"}
        )
        assert time.monotonic() - started < 3
        job_of(answer, 202)


@pytest.mark.parametrize(
    ("change", "status", "field", "next_step"),
    [
        ({"distorted": "../home/models/vmaf/champion"}, 404, "distorted", "Correct the path"),
        ({"reference": "/etc/passwd"}, 404, "reference", "Correct the path"),
        ({"reference": "nothing.mp4"}, 404, "reference", "Correct the path"),
        ({"reference": "http://127.0.0.1:1/a.mp4"}, 404, "reference", "Correct the path"),
        ({"reference": "concat:film.mkv"}, 404, "reference", "Correct the path"),
        ({"reference": "out/passwd"}, 404, "reference", "Correct the path"),
        ({"reference": "a\0b"}, 422, "reference", "Send text"),
        ({"model": "vmaf_v9"}, 422, "model", "Name one of these."),
        ({"every": 0}, 422, "every", "Send a number"),
        ({"wait_s": 11}, 422, "wait_s", "Send a number"),
        ({"evry": 2}, 422, "evry", "Did you mean 'every'?"),
    ],
)
async def test_bad_questions_are_refused(
    measuring: Arguments, media: Path, open_client: OpenClient, change: dict[str, Any], status: int, field: str,
    next_step: str,
) -> None:  # fmt: skip
    (media / "out").symlink_to("/etc")
    async with open_client(measuring) as client:
        problem = problem_of(await client.post("/v1/quality", json=PAIR | change), status)
        assert problem["field"] == field
        assert problem["next_step"].startswith(next_step)
        assert str(media) not in str(problem)
        assert not (measuring.settings().home / "quality").exists()


async def test_broken_media_are_a_problem_and_harm_no_other(
    measuring: Arguments, media: Path, open_client: OpenClient
) -> None:
    (media / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"no video" * 1000)
    async with open_client(measuring) as client:
        broken = answered(client, json=PAIR | {"distorted": "broken.mp4", "wait_s": 8})
        answer, good = await asyncio.gather(broken, answered(client, json=PAIR | {"wait_s": 8}))
        problem = problem_of(answer, 422)
        assert problem["field"] == "distorted"
        assert "no readable media" in problem["got"]
        assert job_of(good).state == "finished"
        unlike = {"reference": "film.mkv", "distorted": "long.mp4", "wait_s": 0}
        other = job_of(await client.post("/v1/quality", json=unlike), 202)
        assert (await ended(client, other.job)).state == "failed"
        assert (await client.post("/v1/quality", json=unlike)).json()["title"] == "Misaligned clips"
        folder = measuring.settings().home / "quality"
        await swept(folder)
        states = {path.name: (path / "state.json").read_bytes() for path in folder.iterdir()}
        (failed,) = [name for name, state in states.items() if b"no readable media" in state]
        seen = job_of(await client.get(f"/v1/quality/{failed}"))
        assert seen.state == "failed"
        assert seen.problem is not None
        assert seen.problem.field == "distorted"


async def test_unknown_job_is_not_found(measuring: Arguments, open_client: OpenClient) -> None:
    async with open_client(measuring) as client:
        for method in ("GET", "DELETE"):
            assert problem_of(await client.request(method, f"/v1/quality/{'0' * 32}"), 404)["field"] == "job"
            assert problem_of(await client.request(method, "/v1/quality/..%5Cchampion"), 422)["field"] == "job"


async def test_what_is_not_set_up_is_named(
    arguments: Arguments, media: Path, open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_client(arguments) as client:
        problem = problem_of(await client.post("/v1/quality", json=PAIR), 503)
        assert problem["field"] == "PLAYHEAD_MEDIA"
    monkeypatch.setenv("PLAYHEAD_MEDIA", str(media))
    async with open_client(arguments) as client:
        problem = problem_of(await client.post("/v1/quality", json=PAIR), 503)
        assert problem["field"] == "vmaf"
        assert "playhead eval quality" in problem["next_step"]


async def test_no_more_than_so_many_wait(measuring: Arguments, open_client: OpenClient) -> None:
    bounded = measuring.model_copy(update={"quality": QualityLimits(waiting=2)})
    async with open_client(bounded) as client:
        jobs = [job_of(await client.post("/v1/quality", json=LONG | {"every": n, "wait_s": 0}), 202) for n in (1, 2)]
        answer = await client.post("/v1/quality", json=LONG | {"every": 3, "wait_s": 0})
        assert problem_of(answer, 503)["expected"] == "fewer than 2"
        assert "retry-after" in answer.headers
        job_of(await client.delete(f"/v1/quality/{jobs[1].job}"))
        job_of(await client.post("/v1/quality", json=LONG | {"every": 3, "wait_s": 0}), 202)
        await running(client, jobs[0].job)
