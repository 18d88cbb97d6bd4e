"""Frames a second of full-reference quality, by backend and size, and of the models without reference: one run.

    make bench-quality

One thread each, one after the other. Ratios travel, figures do not. The last line is JSON.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from deployments.commands.output import Output, reporting
from deployments.jobs import vmaf_artifact
from features.settings import Settings
from serve.artifacts import read_artifact, read_champion
from serve.engines import Device, load_engine
from serve.engines.base import Engine
from serve.quality import libvmaf
from serve.quality.pairing import Pair
from serve.quality.scorer import DEFAULT_MODEL, features_of
from training.quality.export import example_frames, graph_name
from training.quality.noreference_export import NAME as QUALITY
from training.quality.noreference_export import example_features, example_patches
from training.quality.published import read_published

SIZES: Final = ((324, 576), (720, 1280), (1080, 1920))
LEAST_FRAMES: Final = 4
_ROW_S: Final = 5.0
"""About what a figure takes."""


def units_per_s(work: Callable[[int], Any], least: int) -> float:
    """Units a second of `work(units)`, over some seconds after a small run."""
    work(least)
    began = time.perf_counter()
    work(least)
    units = int(np.clip(least * _ROW_S / (time.perf_counter() - began), least, 200 * least))
    began = time.perf_counter()
    work(units)
    return units / (time.perf_counter() - began)


def moving_picture(lines: int, columns: int) -> Callable[[int], list[Pair]]:
    """Gives that many pairs of a moving picture with grain: two in turn, so that memory stays small."""
    frames = example_frames(2, lines, columns)

    def pairs(count: int) -> list[Pair]:
        return [
            Pair(index=place, time_s=place / 25, **{name: array[place % 2] for name, array in frames.items()})
            for place in range(count)
        ]

    return pairs


def full_reference(settings: Settings, output: Output) -> list[dict[str, Any]]:
    """Frames a second of each size: libvmaf, OpenVINO, torch."""
    with reporting(output) as reporter:
        artifact = vmaf_artifact(settings, reporter)
    graph = graph_name(read_published(DEFAULT_MODEL))
    assert graph is not None
    devices: tuple[Device, ...] = ("cpu", "torch")
    engines = {device: load_engine(artifact, graph, device, batches=()) for device in devices}
    rows: list[dict[str, Any]] = []
    for lines, columns in SIZES:
        pairs = moving_picture(lines, columns)
        row: dict[str, Any] = {"size": f"{columns}x{lines}"}
        row["libvmaf"] = units_per_s(partial(_by_libvmaf, pairs), LEAST_FRAMES)
        row["OpenVINO"] = units_per_s(partial(_by_engine, engines["cpu"], pairs), LEAST_FRAMES)
        row["torch"] = units_per_s(partial(_by_engine, engines["torch"], pairs), LEAST_FRAMES)
        rows.append(row)
    return rows


def _by_libvmaf(pairs: Callable[[int], list[Pair]], count: int) -> None:
    libvmaf.score_pairs(pairs(count), model=DEFAULT_MODEL, bit_depth=8)


def _by_engine(engine: Engine, pairs: Callable[[int], list[Pair]], count: int) -> None:
    features_of(engine, pairs(count))


def no_reference(settings: Settings) -> dict[str, float]:
    """Segments a second of both graphs; empty where the model `quality` is not live."""
    live = read_champion(settings.models, QUALITY)
    if live is None:
        return {}
    artifact = read_artifact(live)
    bitstream, frames = (load_engine(artifact, graph, "cpu") for graph in ("bitstream", "frames"))
    facts = {name: np.resize(array, (512, *array.shape[1:])) for name, array in example_features().items()}
    patches = {name: array[:1] for name, array in example_patches().items()}
    return {
        "bitstream_segments_per_s": 512 * units_per_s(lambda count: [bitstream(facts) for _ in range(count)], 4),
        "frames_segments_per_s": units_per_s(lambda count: [frames(patches) for _ in range(count)], 4),
    }


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    settings, console = Settings.from_env(), Console()
    report: dict[str, Any] = {"frames_per_s": full_reference(settings, Output(as_json=False)), **no_reference(settings)}
    table = Table(box=None, pad_edge=False)
    for name in report["frames_per_s"][0]:
        table.add_column(name, justify="right")
    for row in report["frames_per_s"]:
        table.add_row(*(value if isinstance(value, str) else f"{value:.2f}" for value in row.values()))
    console.print(table)
    for name in ("bitstream_segments_per_s", "frames_segments_per_s"):
        if name in report:
            console.print(f"  {name.replace('_', ' ')}  {report[name]:,.0f}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
