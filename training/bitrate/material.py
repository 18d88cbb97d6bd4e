"""What the policy is trained on and validated with: given or generated traces and titles, drawn anew for each round.

A round plays two batches. One is the published setting: variations of the given traces, and the given title with the
linear QoE. The other is everything else: generated networks, titles of 2 to 12 rungs, QoEs, buffer caps, live sessions.
Families that are held out are in neither, nor is each HELD_OUT-th given trace.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from serve.errors import InvalidInput
from training.bitrate.comparison import ENVIVIO_KBPS
from training.bitrate.qoe import LINEAR, PERCEPTUAL, Qoe
from training.bitrate.simulator import LIVE, PENSIEVE, PENSIEVE_TRAINING, Sessions, Settings
from training.bitrate.synthetic import FAMILIES, Family, generate_traces, generate_videos
from training.bitrate.traces import Format, Trace, read_traces
from training.bitrate.variations import draw, vary
from training.bitrate.video import Video, read_video

HELD_OUT: Final = 8
"""One in so many given traces validates and never trains."""

HELD_OUT_FAMILIES: Final = ("wifi",)
"""Generated traces of these families do not train: they show how the policy does on networks of another kind."""

PUBLISHED_SESSIONS: Final = 512
OTHER_SESSIONS: Final = 256
_GENERATED: Final = 96
"""Traces that a round generates; a third as many titles."""

_VARIATIONS: Final = 160
"""Variations of the given traces that a round draws."""

_SPEED: Final = (0.8, 1.25)
_OTHER_SPEED: Final = (0.7, 8.0)
_LEAST_TRACES: Final = 2

_SPARE: Final = 1.1
"""Mean throughput of a trace over the lowest rung's bitrate, at least."""

_VALIDATION_SESSIONS: Final = 600
_VALIDATION_SEGMENTS: Final = 48


@dataclass(frozen=True, eq=False)
class Material:
    """What sessions are made of.

    Attributes:
        traces: that train.
        held_out: that validate.
        titles: of the published setting, each with VMAF or each without.
        name: names the data.
        without: families of generated traces that are held out.
    """

    traces: Sequence[Trace]
    held_out: Sequence[Trace]
    titles: Sequence[Video]
    name: str
    without: Sequence[str] = HELD_OUT_FAMILIES

    @classmethod
    def read(
        cls,
        traces: Path | None,
        sizes: Path | None,
        vmaf: Path | None,
        ladder_kbps: Sequence[float] | None = None,
        segment_s: float = 4.0,
        trace_format: Format = "auto",
        without: Sequence[str] = HELD_OUT_FAMILIES,
    ) -> "Material":
        """Read folders; what is None is generated.

        Raises:
            InvalidInput: a file that can't be used, or families held out that are not there or leave none.
            NotFound: a folder that is not there.
        """
        left = _families(without)
        if traces is None:
            slow = [family for family in left if family.name in {"3g", "broadband"}]
            given = generate_traces(160, seed=0, families=slow or left)
        else:
            given = read_traces(traces, trace_format)
            if len(given) < _LEAST_TRACES:
                raise InvalidInput(
                    field="traces", got=f"{len(given)} in {traces}", expected="two or more: one validates",
                    next_step="Give more traces, or none: then they are generated.",
                )  # fmt: skip
        titles = generate_videos(24, seed=0) if sizes is None else [_title(sizes, vmaf, ladder_kbps, segment_s)]
        digest = hashlib.sha256()
        for trace in given:
            digest.update(trace.times_s.tobytes() + trace.kbps.tobytes())
        for title in titles:
            digest.update(title.rungs_kbps.tobytes() + title.segment_bytes.tobytes())
            digest.update(b"" if title.vmaf is None else title.vmaf.tobytes())
        digest.update(" ".join(sorted(without)).encode())
        return cls(
            [trace for place, trace in enumerate(given) if place % HELD_OUT],
            given[::HELD_OUT],
            titles,
            digest.hexdigest()[:16],
            without,
        )  # fmt: skip

    @classmethod
    def default(cls, without: Sequence[str] = HELD_OUT_FAMILIES) -> "Material":
        """The published traces, sizes and VMAF of `abr/` in PLAYHEAD_DATA, where they lie; else all is generated."""
        data = Path(os.environ.get("PLAYHEAD_DATA", Path(__file__).parents[3] / "shared" / "data")) / "abr"
        folders = (data / "train", data / "envivio" / "size", data / "envivio" / "vmaf")
        traces, sizes, vmaf = folders if all(folder.is_dir() for folder in folders) else (None, None, None)
        return cls.read(traces, sizes, vmaf, without=without)

    def worlds(self, seed: int) -> list[Sessions]:
        """The sessions of one round."""
        random = np.random.default_rng(seed)
        traces = _playable(vary(self.traces, _VARIATIONS, random, speed=_SPEED), self.titles)
        published = Sessions(traces, self.titles, LINEAR, PENSIEVE_TRAINING, batch=PUBLISHED_SESSIONS, seed=seed)
        return [published, self._others(random, seed)]

    def _others(self, random: np.random.Generator, seed: int) -> Sessions:
        traces = generate_traces(_GENERATED, seed=int(random.integers(2**31)), families=_families(self.without))
        traces += vary(self.traces, _GENERATED // 2, random, speed=_OTHER_SPEED)
        titles = generate_videos(_GENERATED // 3, seed=int(random.integers(2**31)))
        titles += [title for title in self.titles if title.vmaf is not None] * 6
        own = Qoe(
            "own", -draw(random, (1.0, 12.0)), -random.uniform(0, 1.5), -random.uniform(0, 1.5), 1.0,
            measure=random.choice(["mbps", "log"]),
        )  # fmt: skip
        return Sessions(
            traces, titles, [LINEAR, PERCEPTUAL, LINEAR, PERCEPTUAL, own], [_draw_settings(random) for _ in range(16)],
            batch=OTHER_SESSIONS, seed=seed + 1,
        )  # fmt: skip

    def validation(self) -> Sessions:
        """Sessions over variations of the held-out traces in the published setting, the same each time."""
        titles = [
            replace(title, segment_bytes=title.segment_bytes[:_VALIDATION_SEGMENTS], vmaf=None) for title in self.titles
        ]
        traces = _playable(vary(self.held_out, _VALIDATION_SESSIONS, np.random.default_rng(1), speed=_SPEED), titles)
        return Sessions(traces, titles, LINEAR, PENSIEVE)


def _families(without: Sequence[str]) -> list[Family]:
    """The families that are left.

    Raises:
        InvalidInput: one is unknown, or none is left.
    """
    names = [family.name for family in FAMILIES]
    if not set(without) < set(names):
        raise InvalidInput(
            field="without", got=", ".join(without), expected=f"some, not all of {', '.join(names)}",
            next_step="Correct --without.",
        )  # fmt: skip
    return [family for family in FAMILIES if family.name not in without]


def _playable(traces: Sequence[Trace], titles: Sequence[Video]) -> list[Trace]:
    """The traces that carry the lowest rung of each title; all, where none does. Others stall whatever is done."""
    least_kbps = _SPARE * max(float(title.rungs_kbps[0]) for title in titles)
    return [trace for trace in traces if trace.mean_kbps >= least_kbps] or list(traces)


def _title(sizes: Path, vmaf: Path | None, ladder_kbps: Sequence[float] | None, segment_s: float) -> Video:
    title = read_video(sizes, vmaf, ladder_kbps, segment_s)
    fits = len(title.rungs_kbps) == len(ENVIVIO_KBPS) and np.allclose(title.rungs_kbps, ENVIVIO_KBPS, rtol=0.05)
    return replace(title, rungs_kbps=np.array(ENVIVIO_KBPS)) if ladder_kbps is None and fits else title


def _draw_settings(random: np.random.Generator) -> Settings:
    if random.random() < 0.125:
        return replace(LIVE, live_target_s=draw(random, (3, 20)), random_start=True, noise=0.1)
    return Settings(
        max_buffer_s=draw(random, (12, 120)) if random.random() < 0.6 else 60.0,
        rtt_s=draw(random, (0.01, 0.3)),
        noise=random.uniform(0, 0.15),
        first_rung=1 if random.random() < 0.5 else None,
        random_start=True,
        startup_weight=None if random.random() < 0.7 else -draw(random, (0.1, 4.0)),
        sizes_known=bool(random.random() < 0.75),
        prior_std=0.0 if random.random() < 0.5 else draw(random, (0.2, 1.0)),
    )
