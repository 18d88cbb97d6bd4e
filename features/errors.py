"""What can go wrong with features: what was wrong with which value, and what to do next.

The same four fields as the service's own errors, so that the gateway can answer with them.
"""


class FeaturesError(Exception):
    """Base of all errors of this package.

    Args:
        field: the name of what was wrong.
        got: the value that came, shortened.
        expected: what would have been right.
        next_step: what the reader should do.
    """

    def __init__(self, *, field: str, got: object, expected: str, next_step: str) -> None:
        self.field = field
        self.got = repr(got)[:200]
        self.expected = expected
        self.next_step = next_step
        super().__init__(f"{field}: got {self.got}, expected {expected}. {next_step}")


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
