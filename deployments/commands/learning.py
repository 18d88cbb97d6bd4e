"""`playhead learn`: update a model from what viewers did, and see what updates did."""

from typing import Annotated

import typer

from deployments.commands.output import Json, answering, reporting

app = typer.Typer(help="Update a model from what viewers did; a running stack also does so by itself.",
                  no_args_is_help=True)  # fmt: skip

Name = Annotated[str, typer.Argument(help="The model.")]


@app.callback()
def _group() -> None:
    """Update a model from what viewers did; a running stack also does so by itself."""


@app.command("now")
def now(
    name: Name = "recommend",
    *,
    data: Annotated[str, typer.Option(help="Data set that the live events are added to; the stack's.")] = "",
    as_json: Json = False,
) -> None:
    """Snapshot, checks, training from the champion, gate, and the first stage of a rollout: now."""
    with answering(as_json=as_json) as output:
        from deployments.learning.update import update_now  # noqa: PLC0415  (imports torch)

        with reporting(output) as reporter:
            artifact = update_now(name, data, reporter)
        output.console.print(f"  {artifact.version} is tried: playhead rollout status {name}", markup=False)
        output.answer({"version": artifact.version, "metrics": artifact.manifest.metrics})


@app.command("steps")
def steps(
    name: Name = "recommend",
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest so many.")] = 20,
    url: Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")] = "",
    as_json: Json = False,
) -> None:
    """What updates of a model did, newest first."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from deployments.service import ask_named  # noqa: PLC0415
    from serve.clock import utc_brief  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        found = ask_named(url, f"/v1/models/{name}/learning?limit={limit}")
        table = Table("time (UTC)", "update", "step", "", "what", box=None, pad_edge=False)
        for step in found["steps"]:
            cells = (step["update"], step["name"], step["moment"], escape(step["text"]))
            table.add_row(utc_brief(step["ts"]), *cells)
        output.console.print(table if found["steps"] else f"no update of {name} yet")
        output.answer(found)
