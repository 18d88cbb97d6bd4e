"""A real title: a moving test picture with noise, five rungs and sound, as DASH and HLS over the same segments."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import imageio_ffmpeg

RUNGS_KBPS: Final = (240, 500, 950, 1700, 3000)
AUDIO_KBPS: Final = 64
SEGMENT_S: Final = 2
DURATION_S: Final = 36
_SIZES: Final = ("160x90", "256x144", "384x216", "512x288", "640x360")
_FRAMES_PER_S: Final = 25


@dataclass(frozen=True)
class Title:
    """Where it lies.

    Attributes:
        folder: manifest.mpd, master.m3u8 and segments.
    """

    folder: Path

    def segment(self, rung: int, number: int) -> Path:
        """A segment; the number counts from 1, the sound's rung is len(RUNGS_KBPS)."""
        return self.folder / f"seg-{rung}-{number:03d}.m4s"


def make_title(folder: Path) -> Title:
    """Encode the title; takes some seconds."""
    folder.mkdir()
    frames = str(SEGMENT_S * _FRAMES_PER_S)
    count = len(RUNGS_KBPS)
    split = f"[0:v]split={count}" + "".join(f"[s{rung}]" for rung in range(count))
    scaled = [f"[s{rung}]scale={size}[v{rung}]" for rung, size in enumerate(_SIZES)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin"]
    command += [
        "-f",
        "lavfi",
        "-i",
        f"mandelbrot=size={_SIZES[-1]}:rate={_FRAMES_PER_S},noise=alls=20:allf=t,format=yuv420p",
    ]
    command += ["-f", "lavfi", "-i", "anoisesrc=amplitude=0.1:sample_rate=48000:seed=1"]
    command += ["-t", str(DURATION_S), "-filter_complex", ";".join([split, *scaled])]
    command += ["-c:v", "libx264", "-preset", "ultrafast", "-threads", "2", "-sc_threshold", "0"]
    command += ["-g", frames, "-keyint_min", frames]
    for rung, kbps in enumerate(RUNGS_KBPS):
        command += ["-map", f"[v{rung}]"]
        for option in ("b", "maxrate", "bufsize"):
            command += [f"-{option}:v:{rung}", f"{kbps}k"]
    command += ["-map", "1:a", "-c:a", "aac", "-b:a", f"{AUDIO_KBPS}k"]
    command += ["-f", "dash", "-seg_duration", str(SEGMENT_S), "-use_template", "1", "-use_timeline", "0"]
    command += ["-adaptation_sets", "id=0,streams=v id=1,streams=a", "-hls_playlist", "1"]
    command += ["-init_seg_name", "init-$RepresentationID$.mp4"]
    command += ["-media_seg_name", "seg-$RepresentationID$-$Number%03d$.m4s", "manifest.mpd"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Title(folder)
