"""Which file a request's path names: one under the media folder, or none at all."""

import os
import stat
from pathlib import Path
from typing import Final

from serve.errors import NotFound

_EXPECTED: Final = "the path of a file under the media folder, relative to it"


def find_file(media: Path, given: str, field: str) -> Path:
    """The real path of a file under the media folder.

    Links are followed as far as they stay within the folder. What lies outside, and what is not there, is refused in
    the same words, so that nothing can be learned of other folders.

    Args:
        media: the folder.
        given: as it came.
        field: name of the value, for the error.

    Raises:
        NotFound: an absolute path, one with `..`, a link that leads out, no such file, or no regular file.
    """
    parts = given.split("/")
    try:
        if given.startswith("/") or ".." in parts or "\0" in given:
            raise _missing(field, given)
        root = Path(os.path.realpath(media))
        path = Path(os.path.realpath(root / given))
        if path == root or not path.is_relative_to(root) or not stat.S_ISREG(path.stat().st_mode):
            raise _missing(field, given)
    except (OSError, ValueError) as error:
        raise _missing(field, given) from error
    return path


def _missing(field: str, given: str) -> NotFound:
    return NotFound(
        field=field, got=given, expected=_EXPECTED,
        next_step="Correct the path; absolute paths, `..` and links that lead out of the folder are not followed.",
    )  # fmt: skip
