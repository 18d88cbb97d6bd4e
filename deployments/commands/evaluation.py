"""`playhead eval NAME`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from deployments.commands.output import Json, answering, reporting

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(help="Measure a model beside its rivals in one run.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure a model beside its rivals in one run."""


@app.command("recommend")
def recommend(
    *,
    data: Annotated[str, typer.Option(help="A data set, or a file of user,item[,timestamp] in order.")] = "ml-100k",
    seed: Annotated[int | None, typer.Option(min=0, help="One seed.")] = None,
    seeds: Annotated[str, typer.Option(help="Several, as in 0,1,2.")] = "0,1,2",
    as_json: Json = False,
) -> None:
    """Leave-one-out over the whole catalogue: Playhead, a plain SASRec, item-kNN and popularity."""
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        chosen = _seeds(str(seed) if seed is not None else seeds)
        from deployments.jobs import evaluate_recommend  # noqa: PLC0415  (imports torch)

        with reporting(output) as reporter:
            report = evaluate_recommend(data, chosen, Settings.from_env(), reporter)
        output.console.print(_table(report))
        output.answer(report)


@app.command("bitrate")
def bitrate(
    *,
    traces: Annotated[Path | None, typer.Option(help="Folder of throughput traces.")] = None,
    trace_format: Annotated[
        str, typer.Option("--format", help="Of the traces: auto, pensieve, mahimahi, sabre or kbps.")
    ] = "auto",
    sizes: Annotated[Path | None, typer.Option(help="Folder of segment sizes: video_size_0, ... in bytes.")] = None,
    vmaf: Annotated[Path | None, typer.Option(help="Folder of the same segments' VMAF: video1, ...")] = None,
    ladder_kbps: Annotated[
        str | None, typer.Option(help="Nominal bitrates, as in 300,750,1200; else as the sizes say.")
    ] = None,
    segment_s: Annotated[float, typer.Option(help="Length of a segment.")] = 4.0,
    max_buffer_s: Annotated[float, typer.Option(help="Cap of the buffer.")] = 60.0,
    qoe: Annotated[
        str, typer.Option(help="linear, perceptual, or weights rebuffer,rise,fall,quality as in -4.3,-1,-1,1.")
    ] = "linear",
    policy: Annotated[
        str,
        typer.Option(help="all, or some of playhead, throughput, bba, bola, mpc, robust_mpc, optimum, published_*."),
    ] = "all",
    logs: Annotated[Path | None, typer.Option(help="Folder of published logs; else `logs` beside the traces.")] = None,
    model: Annotated[str | None, typer.Option(help="Version or folder to run as playhead; else the champion.")] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Generate traces instead: 3g, 4g, 5g, broadband or wifi; a title, too, if no --sizes."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many to generate.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of what is generated.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw one session of the first policy into this HTML file.")] = None,
    plot_trace: Annotated[str | None, typer.Option(help="Which one; else the farthest below the optimum.")] = None,
    as_json: Json = False,
) -> None:
    """Bitrate policies over the same traces: Playhead, the published rules and logs, and the optimum.

    A session is worth its mean QoE per segment from the second one on; the setting is Pensieve's (first segment at rung
    1, 80 ms a request, 95 % payload).
    """
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        ladder = _bitrates(ladder_kbps)
        from deployments.jobs import evaluate_bitrate  # noqa: PLC0415  (imports torch)
        from training.bitrate.comparison import Request  # noqa: PLC0415

        request = Request(
            traces=traces, format=trace_format, family=family, count=count, sizes=sizes, vmaf=vmaf, ladder_kbps=ladder,
            segment_s=segment_s, max_buffer_s=max_buffer_s, qoe=qoe,
            policies=[name for name in re.split(r"[,\s]+", policy) if name], logs=logs, model=model, seed=seed,
            plot=plot, plot_trace=plot_trace,
        )  # fmt: skip
        with reporting(output) as reporter:
            report = evaluate_bitrate(request, Settings.from_env(), reporter)
        output.console.print(_policies(report))
        for note in report["notes"]:
            output.console.print(f"  [yellow]![/] {escape(note)}", soft_wrap=True)
        if "plot" in report:
            output.console.print(f"  drawn  {report['plot']['path']}", markup=False, soft_wrap=True)
        output.answer(report)


@app.command("quality")
def quality(
    reference: Annotated[Path, typer.Argument(help="The clip as it should be.")],
    distorted: Annotated[Path, typer.Argument(help="An encode of it.")],
    *,
    model: Annotated[
        str,
        typer.Option(
            help="vmaf_v0.6.1; vmaf_v0.6.1neg, which enhancement can't fool; or vmaf_v1.0.16_3d0h, by libvmaf alone."
        ),
    ] = "vmaf_v0.6.1",
    backend: Annotated[
        str, typer.Option(help="engine (Playhead's graph), libvmaf, or both and their difference.")
    ] = "both",
    every: Annotated[int, typer.Option(min=1, max=1000, help="Score one frame in so many.")] = 1,
    as_json: Json = False,
) -> None:
    """VMAF of a clip against its reference, frame by frame and pooled.

    Differing size, rate, start, bars and colour range are found and corrected, and said; what can't be is an error.
    """
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        from deployments.jobs import evaluate_quality  # noqa: PLC0415  (imports torch)
        from serve.errors import InvalidInput  # noqa: PLC0415
        from serve.quality.scorer import BACKENDS  # noqa: PLC0415

        if backend not in {"both", *BACKENDS}:
            raise InvalidInput(
                field="--backend", got=backend, expected="both, engine or libvmaf", next_step="Correct --backend."
            )
        with reporting(output) as reporter:
            report = evaluate_quality(
                reference, distorted, Settings.from_env(), reporter, model=model, backend=backend, every=every
            )
        output.console.print(_quality(report))
        if "difference" in report:
            away = report["difference"]
            output.console.print(
                f"  difference  mean {away['mean_absolute']:.4f}, largest {away['max_absolute']:.4f} "
                f"at frame {away['worst_frame']}", markup=False,
            )  # fmt: skip
        if "no_reference" in report:
            guess = report["no_reference"]["clip"]
            output.console.print(
                f"  without the reference  {guess['vmaf']:.1f}, from {guess['low']:.1f} to {guess['high']:.1f}",
                markup=False,
            )
        for note in (*report["corrections"], *report["notes"]):
            output.console.print(f"  [yellow]![/] {escape(note)}", soft_wrap=True)
        output.answer(report)


def _quality(report: dict[str, Any]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    table.add_column(report["model"], no_wrap=True)
    for name in ("mean", "harmonic", "p1", "p5", "worst second", "frames"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in {report[name]["backend"]: report[name] for name in ("vmaf", "libvmaf") if name in report}.values():
        margin = f" ±{row['margin']:.2f}" if row["margin"] else ""
        figures = (f"{row[key]:.3f}" for key in ("harmonic_mean", "p1", "p5", "worst_second"))
        table.add_row(row["backend"], f"{row['mean']:.3f}{margin}", *figures, str(len(row["frames"])))
    return table


def _bitrates(text: str | None) -> list[float] | None:
    """Bitrates from text.

    Raises:
        InvalidInput: the text is no list of numbers.
    """
    from serve.errors import InvalidInput  # noqa: PLC0415

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(
            field="--ladder-kbps", got=text, expected="numbers such as 300,750,1200", next_step="Correct --ladder-kbps."
        ) from None


def _policies(report: dict[str, Any]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for name in ("QoE", "p5", "rebuffer s", "switches", "against robust_mpc"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in report["policies"].items():
        against = report["paired"].get(name, {}).get("robust_mpc")
        table.add_row(
            name, *(f"{row[key]:.4f}" for key in ("mean", "p5")), f"{row['rebuffer_s']:.2f}", f"{row['switches']:.1f}",
            "" if against is None else f"{against['mean']:+.4f} ±{against['standard_error']:.4f}",
        )  # fmt: skip
    return table


def _seeds(text: str) -> list[int]:
    """Seeds from text.

    Raises:
        InvalidInput: the text is no list of whole numbers.
    """
    from serve.errors import InvalidInput  # noqa: PLC0415

    parts = [part for part in re.split(r"[,\s]+", text) if part]
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidInput(
            field="seeds", got=text, expected="whole numbers from 0, such as 0,1,2", next_step="Correct --seeds."
        )
    return [int(part) for part in parts]


def _table(report: dict[str, Any]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table("model", box=None, pad_edge=False)
    models = report["models"]
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    for name in names:
        table.add_column(name, justify="right")
    for model, metrics in models.items():
        table.add_row(model, *(_cell(metrics.get(name)) for name in names))
    return table


def _cell(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.4f} ±{value['std']:.4f}"
