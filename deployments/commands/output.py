"""How commands answer: tables and words for people, or one JSON object as the last line; and how they fail."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from deployments.progress import TerminalReporter

FAILED: Final = 1
INTERRUPTED: Final = 130

_COLUMNS: Final = 240
"""Of what is no terminal and names no width: tables are whole in a file or a pipe."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


class Output:
    """Where one command's answer goes.

    Attributes:
        console: for people: standard output, or standard error where standard output is for JSON.
        as_json: whether JSON was asked for.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False)
        if not self.console.is_terminal and not os.environ.get("COLUMNS"):
            self.console.width = _COLUMNS

    def answer(self, fields: Any) -> None:
        """Print the JSON line, if it was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(fields) + "\n")
            sys.stdout.flush()

    def fail(self, fields: dict[str, Any]) -> typer.Exit:
        """Say what is wrong: field, got, expected, next step. Raise what this returns.

        Args:
            fields: field, got, expected and next_step.
        """
        shown = Console(stderr=True, highlight=False, soft_wrap=True)
        shown.print(f"[bold red]{escape(fields['field'])}[/]: {escape(fields['got'])}")
        shown.print(f"  expected  {escape(fields['expected'])}")
        shown.print(f"  next      {escape(fields['next_step'])}")
        self.answer({"error": fields})
        return typer.Exit(FAILED)


@contextmanager
def answering(*, as_json: bool) -> Iterator[Output]:
    """An output for one command; errors that are meant for the caller become words and exit status 1."""
    from features.errors import FeaturesError  # noqa: PLC0415
    from serve.errors import PlayheadError  # noqa: PLC0415

    output = Output(as_json=as_json)
    try:
        yield output
    except (PlayheadError, FeaturesError) as error:
        names = ("field", "got", "expected", "next_step")
        raise output.fail({name: str(getattr(error, name)) for name in names}) from error
    except KeyboardInterrupt as error:
        output.console.print("interrupted")
        output.answer({"error": {"field": "command", "got": "interrupted"}})
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def reporting(output: Output) -> Iterator[TerminalReporter]:
    """A reporter whose moving lines are gone at the end."""
    reporter = TerminalReporter(output.console)
    try:
        yield reporter
    finally:
        reporter.close()
