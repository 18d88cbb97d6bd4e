"""`playhead doctor`."""

from typing import Annotated

import typer

from deployments.commands.output import FAILED, Json, answering


def doctor(
    *,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Where the service would listen.")] = 8000,
    data: Annotated[str, typer.Option(help="Name of the data set.")] = "ml-100k",
    as_json: Json = False,
) -> None:
    """Name what is wrong and the next step. Exit status 0 only if nothing is."""
    from rich.markup import escape  # noqa: PLC0415

    from deployments.doctor import Verdict, circumstances, examine  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        findings = []
        for finding in examine(circumstances(Settings.from_env(), port=port, data=data)):
            findings.append(finding)
            good = finding.verdict is Verdict.OK
            mark = "[green]✓[/]" if good else "[bold red]✗[/]"
            output.console.print(f"  {mark} {finding.part:<10} {escape(finding.text)}", soft_wrap=True)
            if not good:
                output.console.print(f"              next: {escape(finding.next_step)}", soft_wrap=True)
        wrong = sum(finding.verdict is Verdict.WRONG for finding in findings)
        output.console.print(f"{wrong} things are wrong" if wrong else "all is well")
        output.answer({"ok": not wrong, "findings": [finding.as_json() for finding in findings]})
        if wrong:
            raise typer.Exit(FAILED)
