"""Data that comes inside a wheel of the package index: fetched with pip, pinned by sha256, read from the archive."""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serve.errors import PlayheadError, Unavailable


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """A wheel that carries data.

    Attributes:
        file: its file name.
        sha256: of the file.
        requirement: that pip is asked for, such as `recbole==1.2.1`.
        field: what it carries, as errors name it.
        carries: that once more, as in "which carries ...".
        otherwise: what to do where it can't be had, besides putting the file into the cache.
        altered: makes the error for another file of that name.
    """

    file: str
    sha256: str
    requirement: str
    field: str
    carries: str
    otherwise: str
    altered: Callable[..., PlayheadError]

    def fetch(self, cache: Path, *, deadline_s: float = 120.0) -> Path:
        """The wheel, from the cache folder or through pip; its sha256 is checked each time.

        Args:
            cache: folder that keeps it; a wheel that was put there by hand is used with no network.
            deadline_s: longest wait for pip.

        Raises:
            Unavailable: no index is reachable, or it took too long.
            PlayheadError: of `altered`: what came is not the pinned file.
        """
        wheel = cache / self.file
        if wheel.is_file() and file_sha256(wheel) == self.sha256:
            return wheel
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
                       "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=15", "--dest", folder,
                       self.requirement]  # fmt: skip
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s, check=False)
            except subprocess.TimeoutExpired:
                raise self._no_index(cache, f"no answer within {deadline_s:.0f} s") from None
            fetched = Path(folder) / self.file
            if done.returncode != 0 or not fetched.is_file():
                raise self._no_index(cache, (done.stderr or done.stdout).strip()[-180:] or "another file")
            digest = file_sha256(fetched)
            if digest != self.sha256:
                raise self.altered(
                    field=self.file, got=f"sha256 {digest}", expected=f"sha256 {self.sha256}",
                    next_step="The package index gave another file than the published one; do not use it.",
                )  # fmt: skip
            fetched.replace(wheel)
        return wheel

    def _no_index(self, cache: Path, got: str) -> Unavailable:
        return Unavailable(
            field=self.field, got=got, expected=f"pip to download {self.requirement}, which carries {self.carries}",
            next_step=f"Put {self.file} into {cache}, or {self.otherwise}.",
        )  # fmt: skip


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
