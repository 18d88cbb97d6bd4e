"""`playhead eval NAME`."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
