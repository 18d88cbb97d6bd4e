"""`playhead quality`: what encodes of a title are worth."""

import time
from pathlib import Path
from typing import Annotated

import typer

from deployments.commands.output import Json, answering, reporting

app = typer.Typer(help="Measure titles for the bitrate decisions.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure titles for the bitrate decisions."""


@app.command("title")
def title(
    folder: Annotated[Path, typer.Argument(help="Holds the title's renditions, one file each.")],
    *,
    reference: Annotated[Path, typer.Option(help="What they were encoded from.")],
    title_id: Annotated[str | None, typer.Option(help="Else the folder's name.")] = None,
    segment_s: Annotated[float, typer.Option(min=0.2, max=60, help="Length of a segment.")] = 4.0,
    every: Annotated[int, typer.Option(min=1, max=1000, help="Score one frame in so many.")] = 1,
    model: Annotated[str, typer.Option(help="VMAF model.")] = "vmaf_v0.6.1",
    as_json: Json = False,
) -> None:
    """Bytes and VMAF of each segment of each rendition, written to Feast's rendition_segments for bitrate decisions."""
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        from deployments.jobs import measure_renditions  # noqa: PLC0415  (imports torch)

        settings = Settings.from_env()
        name = title_id or folder.resolve().name
        with reporting(output) as reporter:
            ladder = measure_renditions(
                folder, reference, name, settings, reporter, segment_s=segment_s, every=every, model=model,
                ts_ms=int(time.time() * 1000),
            )  # fmt: skip
        for rung, rendition in enumerate(ladder):
            mean = sum(rendition.vmaf) / len(rendition.vmaf)
            output.console.print(
                f"  rung {rung}  {rendition.bitrate_kbps:,.0f} kbit/s  {len(rendition.vmaf)} segments  VMAF {mean:.2f}"
            )
        rows = [
            {"bitrate_kbps": one.bitrate_kbps, "sizes_bytes": list(one.sizes_bytes), "vmaf": list(one.vmaf)}
            for one in ladder
        ]
        output.answer({"title_id": name, "segment_s": segment_s, "renditions": rows})
