"""The service's errors: what was wrong with which value, and what to do next (RFC 9457)."""

from typing import ClassVar

from features.errors import ExplainedError


class PlayheadError(ExplainedError):
    """Base of all errors that have an HTTP status."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"


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
