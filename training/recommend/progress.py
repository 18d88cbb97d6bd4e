"""How long jobs tell how far they are: one call, so that a terminal, a log or nothing can listen."""

from typing import Protocol


class ProgressReport(Protocol):
    """Something that is told how far a job is."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Called now and then.

        Args:
            stage: what is being done, such as `sasrec seed 1`.
            done: steps done; equal to total when the stage is complete.
            total: steps in all.
            note: a figure worth seeing, such as the newest validation metric.
        """


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Tell nobody."""
    del stage, done, total, note
