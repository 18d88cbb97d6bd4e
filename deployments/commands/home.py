"""`playhead home PROFILE`."""

from typing import Annotated

import typer

from deployments.commands.output import Json, answering


def home(
    profile: Annotated[str, typer.Argument(help="A profile's id.")],
    *,
    url: Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Show a profile's home page as rows of titles."""
    from deployments.homepage import fetch, page_lines  # noqa: PLC0415
    from deployments.state import service_url  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        page = fetch(url or service_url(Settings.from_env().home), profile)
        for line in page_lines(page, output.console.width):
            output.console.print(line, soft_wrap=True)
        output.answer(page)
