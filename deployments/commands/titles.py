"""`playhead titles`: put titles beside the catalogue that is served, or take them out; no training, no restart."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from deployments.commands.output import FAILED, Json, answering

if TYPE_CHECKING:
    from features.settings import Settings

app = typer.Typer(help="Titles beside the catalogue that is served.", no_args_is_help=True)

_POLL_S: Final = 0.1

Data = Annotated[str, typer.Option("--data", help="The data set; that of the service that is up if not given.")]


@app.callback()
def _group() -> None:
    """Titles beside the catalogue that is served."""


@app.command("put")
def put(
    file: Annotated[Path, typer.Argument(help="A .parquet or .csv file with the columns of titles.parquet.")],
    *,
    data: Data = "",
    wait: Annotated[float, typer.Option(min=0, max=600, help="Seconds to wait until they are served; 0: don't.")] = 0,
    url: Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Put new titles there, or others in the place of those with the same ids."""
    from dataclasses import asdict  # noqa: PLC0415

    from features.additions import put_titles  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415
    from training.datasets.additions import read_titles  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        dataset = _dataset(settings, data)
        titles, problems = read_titles(file)
        if problems:
            for problem in problems:
                output.console.print(f"  {problem}", markup=False, soft_wrap=True)
            output.console.print(f"{len(problems)} problems; nothing was put")
            output.answer({"data": dataset, "problems": [asdict(problem) for problem in problems]})
            raise typer.Exit(FAILED)
        began_s = time.monotonic()
        done = put_titles(settings, dataset, titles)
        told = {"data": dataset, "new": done.new, "replaced": done.replaced, "total": done.total}
        if wait and titles:
            _wait(url, titles[-1].title_id, began_s + wait)
            told["served_after_s"] = round(time.monotonic() - began_s, 2)
        served = f", served after {told['served_after_s']} s" if wait and titles else ""
        output.console.print(
            f"{done.new} new titles beside {dataset}, {done.replaced} replaced, {done.total} in all{served}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        output.answer(told)


@app.command("remove")
def remove(
    title_ids: Annotated[list[str], typer.Argument(help="Ids of titles that were put there.")],
    *,
    data: Data = "",
    as_json: Json = False,
) -> None:
    """Take titles out again; those of the data set's own stay, as it has them."""
    from features.additions import remove_titles  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        settings = Settings.from_env()
        dataset = _dataset(settings, data)
        removed = remove_titles(settings, dataset, title_ids)
        output.console.print(f"{removed} titles taken out", markup=False)
        output.answer({"data": dataset, "removed": removed})


def _dataset(settings: "Settings", data: str) -> str:
    from deployments.state import RunFolder, StackState  # noqa: PLC0415
    from serve.errors import InvalidInput  # noqa: PLC0415

    state = StackState.read(RunFolder(settings.home))
    if data or state is not None:
        return data or state.data  # type: ignore[union-attr]
    raise InvalidInput(
        field="--data", got=None, expected="the name of a data set, for nothing is up here",
        next_step="Name the one that the service shows.",
    )  # fmt: skip


def _wait(url: str, title_id: str, until_s: float) -> None:
    """Until the service answers with a title.

    Raises:
        Unavailable: it does not in time.
    """
    from urllib.parse import quote  # noqa: PLC0415

    from deployments.service import ask_named  # noqa: PLC0415
    from serve.errors import InvalidInput, PlayheadError, Unavailable  # noqa: PLC0415

    path = f"/v1/titles/{quote(title_id, safe='')}/similar?items=1"
    while True:
        try:
            ask_named(url, path)
        except (InvalidInput, Unavailable) as error:
            refused: PlayheadError = error
        else:
            return
        if time.monotonic() > until_s:
            raise Unavailable(
                field="service", got=f"not served yet ({refused.field}: {refused.got})",
                expected="an answer with the new titles in it",
                next_step="They are in the store; see the service's log for why it does not take them.",
            ) from refused  # fmt: skip
        time.sleep(_POLL_S)
