"""What can go wrong: what was wrong with which value, and what to do next."""


class ExplainedError(Exception):
    """Base of all errors that a caller is told about.

    Args:
        field: the name of what was wrong, such as `limit` or `files.model.pt2`.
        got: the value that came, shortened.
        expected: what would have been right.
        next_step: what the reader should do.
    """

    def __init__(self, *, field: str, got: object, expected: str, next_step: str) -> None:
        self.field = field
        self.got = repr(got)[:200]
        self.expected = expected
        self.next_step = next_step
        super().__init__()

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}, expected {self.expected}. {self.next_step}"

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields across process borders (keyword-only arguments do not pickle by themselves)."""
        return (_rebuild, (type(self), self.field, self.got, self.expected, self.next_step))


def _rebuild(kind: type[ExplainedError], field: str, got: str, expected: str, next_step: str) -> ExplainedError:
    error = kind(field=field, got=got, expected=expected, next_step=next_step)
    error.got = got
    return error


class FeaturesError(ExplainedError):
    """Base of all errors of this package."""


class StoreUnavailable(FeaturesError):
    """The online store does not answer; nothing that was not acknowledged may be taken as stored."""


class StoreTimeout(StoreUnavailable):
    """The online store did not answer within the deadline."""


class CorruptRecord(FeaturesError):
    """The online store holds bytes that are no record of ours."""


class InvalidBatch(FeaturesError):
    """A batch of events that cannot be taken as it is."""


class InvalidData(FeaturesError):
    """A data set's file that is missing or does not have the columns it must have."""
