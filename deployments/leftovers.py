"""What a run leaves behind, whether it ended or died, and how it is cleared away."""

import contextlib
import shutil
from pathlib import Path

from deployments import processes
from deployments.processes import ENDING_GRACE_S
from deployments.progress import Moment, Notice, Reporter
from deployments.state import RunFolder, StackState


def clean(folder: RunFolder, reporter: Reporter) -> int:
    """End what a run that died left behind. Only for who holds the lock.

    Returns:
        How many processes there were.
    """
    state = StackState.read(folder)
    if state is None:
        return 0
    left = {name: len(part.session()) for name, part in state.parts.items()}
    processes.end(state.parts.values(), grace_s=ENDING_GRACE_S)
    if sum(left.values()):
        names = ", ".join(f"{name} ({count})" for name, count in left.items() if count)
        text = f"ended processes of a run that died: {names}"
        reporter.tell(Notice(phase="cleaning", moment=Moment.NOTE, text=text))
    discard(folder, state)
    return sum(left.values())


def discard(folder: RunFolder, state: StackState) -> None:
    """Keep Ray's logs of a run that is over, remove its sockets and its state.

    Args:
        folder: of the run.
        state: of the run.
    """
    temporary = Path(state.temporary)
    if state.temporary and temporary.is_dir():
        kept = folder.home / "logs" / "ray"
        for session in (temporary / "ray").glob("session_*_*"):
            if session.is_symlink():
                continue
            shutil.rmtree(kept, ignore_errors=True)
            with contextlib.suppress(OSError):  # a Ray that was interrupted early has none, or not all
                shutil.copytree(session / "logs", kept, ignore_dangling_symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
    folder.state.unlink(missing_ok=True)
