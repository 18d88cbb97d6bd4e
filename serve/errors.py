"""The one error hierarchy: what was wrong with which value, and what to do next (RFC 9457)."""

from typing import ClassVar


class PlayheadError(Exception):
    """Base of all errors that a caller is told about.

    Args:
        field: the name of what was wrong, such as `limit` or `files.model.pt2`.
        got: the value that came, shortened.
        expected: what would have been right.
        next_step: what the reader should do.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, *, field: str, got: object, expected: str, next_step: str) -> None:
        self.field = field
        self.got = repr(got)[:200]
        self.expected = expected
        self.next_step = next_step
        super().__init__(f"{field}: got {self.got}, expected {expected}. {next_step}")

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields across process borders (keyword-only arguments do not pickle by themselves)."""
        return (_rebuild, (type(self), self.field, self.got, self.expected, self.next_step))


def _rebuild(kind: type[PlayheadError], field: str, got: str, expected: str, next_step: str) -> PlayheadError:
    error = kind(field=field, got=got, expected=expected, next_step=next_step)
    error.got = got
    return error


class InvalidInput(PlayheadError):
    """A request or an engine input that cannot be used."""

    status = 422
    title = "Invalid input"


class NotFound(PlayheadError):
    """A thing that is asked for by id and is not there."""

    status = 404
    title = "Not found"


class Unavailable(PlayheadError):
    """A part that an answer cannot do without is down."""

    status = 503
    title = "Unavailable"


class ArtifactError(PlayheadError):
    """A model artifact that is missing, incomplete or altered; the old version keeps serving."""

    status = 500
    title = "Invalid artifact"
