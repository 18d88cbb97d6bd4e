"""Clips that ffmpeg makes: a lossless film with movement, detail and grain, and whatever is made of it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg  # type: ignore[import-untyped]
import pytest

Clip = Callable[..., Path]

FILM = (
    "mandelbrot=s=640x360:rate=25:maxiter=150:start_scale=0.5:end_scale=0.02:end_pts=300,"
    "crop=320:180:x='160+90*sin(n/9)':y='90+60*sin(n/7+1)',noise=alls=8:allf=t:all_seed=7,format=yuv420p"
)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """Makes a file once: `clip(name, *ffmpeg's arguments)`."""
    folder = tmp_path_factory.mktemp("clips")
    program = imageio_ffmpeg.get_ffmpeg_exe()

    def make(name: str, *arguments: str | Path) -> Path:
        path = folder / name
        if not path.exists():
            subprocess.run(
                [program, "-v", "error", "-nostdin", "-threads", "2", *map(str, arguments), str(path)],
                check=True, capture_output=True, timeout=60,
            )  # fmt: skip
        return path

    return make


@pytest.fixture(scope="session")
def film(clip: Clip) -> Path:
    """320x180, 25 frames/s, 80 frames, lossless."""
    return clip("film.mkv", "-f", "lavfi", "-i", FILM, "-frames:v", "80", "-c:v", "ffv1")


@pytest.fixture(scope="session")
def changed(clip: Clip, film: Path) -> Clip:
    """A lossless copy of the film through filters: `changed(name, filters, *more)`."""

    def make(name: str, filters: str, *more: str) -> Path:
        return clip(f"{name}.mkv", "-i", film, "-vf", filters, *more, "-c:v", "ffv1")

    return make
