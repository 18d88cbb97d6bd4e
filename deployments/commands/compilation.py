"""`playhead compile NAME`."""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.commands.output import Json, answering

if TYPE_CHECKING:
    from training.compilation import CompiledGraph


def compile_(
    name: Annotated[str, typer.Argument(help="A model, such as recommend; playhead models lists them.")],
    *,
    target: Annotated[
        str,
        typer.Option(
            help="cpu: compile, compare and measure. tensorrt: for this machine's GPU. "
            "tensorrt-rtx: for RTX GPUs, which need not be here."
        ),
    ],
    version: Annotated[str, typer.Option(help="A version; else the champion.")] = "",
    arch: Annotated[str, typer.Option(help="GPU architectures for tensorrt-rtx, as in sm86,sm89.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Build what is there already too.")] = False,
    as_json: Json = False,
) -> None:
    """Compile a model's graphs for a CPU or a GPU, and keep the engines in its artifact."""
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        from deployments.inventory import find_version, other_versions  # noqa: PLC0415
        from training.compilation import compile_artifact  # noqa: PLC0415  (imports torch)

        artifact = find_version(settings.models, name, version)
        architectures = [part for part in re.split(r"[,\s]+", arch) if part]
        rows: list[CompiledGraph] = []
        with output.console.status(f"compiling {name} {artifact.version} for {target} ..."):
            donors = other_versions(settings.models, artifact) if target == "tensorrt" else []
            compiled = compile_artifact(
                artifact, target, architectures=architectures, donors=donors, again=again  # type: ignore[arg-type]
            )  # fmt: skip
            rows.extend(compiled)
        output.console.print(f"{name} {artifact.version} for {target}", markup=False, soft_wrap=True)
        output.console.print(_table(rows))
        output.answer(
            {
                "model": name,
                "version": artifact.version,
                "path": str(artifact.path),
                "target": target,
                "graphs": [asdict(row) for row in rows],
            }
        )


def _table(rows: "list[CompiledGraph]") -> Any:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("graph", "arch"):
        table.add_column(column, no_wrap=True)
    for column in ("KiB", "seconds", "layers", "all taken", "type", "how", "error", "call ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.graph, row.architecture, f"{row.size_bytes / 1024:,.0f}", f"{row.seconds:.2f}",
            str(row.layers), "yes" if row.complete else "no", row.precision, row.how,
            "not run" if row.error is None else f"{row.error:.1e}",
            "not run" if row.latency_ms is None else f"{row.latency_ms:.3f}",
        )  # fmt: skip
    return table
