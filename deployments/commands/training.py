"""`playhead train NAME`."""

from typing import Annotated

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
