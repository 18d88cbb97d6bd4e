"""What a long command tells while it works: phases that start, advance and end.

Parts that run in processes of their own tell the same as JSON lines, so the terminal looks alike whoever does the work.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import IO, Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Moment(StrEnum):
    """What a notice says about its phase."""

    START = "start"
    ADVANCE = "advance"
    DONE = "done"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing told.

    Attributes:
        phase: name of the phase, such as `training`.
        moment: what happened.
        share: how much of the phase is done, 0 to 1; None where unknown.
        text: for people.
        seconds: how long the phase took, at its end.
    """

    phase: str
    moment: Moment
    share: float | None = None
    text: str = ""
    seconds: float | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `line` gave."""
        return cls(
            phase=str(fields["phase"]),
            moment=Moment(fields["moment"]),
            share=fields.get("share"),
            text=str(fields.get("text", "")),
            seconds=fields.get("seconds"),
        )

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"


class Reporter(Protocol):
    """Who is told."""

    def tell(self, notice: Notice) -> None:
        """Take a notice."""


def advance(reporter: Reporter, name: str) -> Callable[..., None]:
    """What training tells, as notices of a phase."""

    def told(stage: str, done: int, total: int, note: str = "") -> None:
        share = done / total if total else None
        reporter.tell(Notice(phase=name, moment=Moment.ADVANCE, share=share, text=f"{stage}  {note}".strip()))

    return told


@contextmanager
def phase(reporter: Reporter, name: str, text: str = "") -> Iterator[list[str]]:
    """Report a phase around a block; the block may put what it found into the list, told at the end."""
    reporter.tell(Notice(phase=name, moment=Moment.START, text=text))
    began, found = time.perf_counter(), [text] if text else []
    yield found
    seconds = time.perf_counter() - began
    reporter.tell(Notice(phase=name, moment=Moment.DONE, text=found[-1] if found else "", seconds=seconds))


class LineReporter:
    """Tells a stream, as JSON lines."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def tell(self, notice: Notice) -> None:
        """Write a notice and flush."""
        self._stream.write(notice.line())
        self._stream.flush()


class TerminalReporter:
    """Tells a terminal: a moving line for each phase that runs, a plain one for each that ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[phase]:<10}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def tell(self, notice: Notice) -> None:
        """Show a notice."""
        if notice.moment is Moment.NOTE:
            self._console.print(f"  [yellow]![/] {notice.phase:<10} {notice.text}", highlight=False)
            return
        if notice.moment is Moment.DONE:
            self._finish(notice)
            return
        if notice.phase not in self._tasks:
            if not self._tasks:
                self._progress.start()
            self._tasks[notice.phase] = self._progress.add_task("", total=None, phase=notice.phase, text=notice.text)
        task = self._tasks[notice.phase]
        if notice.text:
            self._progress.update(task, text=notice.text)
        if notice.share is not None:
            self._progress.update(task, total=1.0, completed=notice.share)

    def close(self) -> None:
        """Take the moving lines away."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        self._progress.stop()

    def _finish(self, notice: Notice) -> None:
        task = self._tasks.pop(notice.phase, None)
        if task is not None:
            self._progress.remove_task(task)
        if not self._tasks:
            self._progress.stop()
        seconds = f"{notice.seconds:6.1f} s" if notice.seconds is not None else " " * 8
        self._console.print(f"  [green]✓[/] {notice.phase:<10}{seconds}  [dim]{notice.text}[/]", highlight=False)
