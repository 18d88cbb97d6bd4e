"""What trains, what validates and what tests."""

from dataclasses import dataclass

from training.recommend.interactions import Interactions, Ints, Prefix


@dataclass(frozen=True, kw_only=True)
class Split:
    """Leave-one-out: the newest title of each user tests, the one before it validates, the rest trains.

    Users with fewer than three interactions only train.

    Attributes:
        train: P stretches to fit.
        validation: what precedes each validation target.
        test: what precedes each test target, the validation target included.
        validation_targets: rows.
        test_targets: rows.
    """

    train: tuple[Prefix, ...]
    validation: tuple[Prefix, ...]
    test: tuple[Prefix, ...]
    validation_targets: Ints
    test_targets: Ints

    @classmethod
    def leave_one_out(cls, interactions: Interactions) -> "Split":
        """Split by each user's own order."""
        lengths = interactions.lengths()
        held = (lengths >= 3).nonzero()[0]
        ends = interactions.offsets[1:][held]
        return cls(
            train=tuple(interactions.prefix(user, 2 if size >= 3 else 0) for user, size in enumerate(lengths.tolist())),
            validation=tuple(interactions.prefix(int(user), 2) for user in held),
            test=tuple(interactions.prefix(int(user), 1) for user in held),
            validation_targets=interactions.rows[ends - 2],
            test_targets=interactions.rows[ends - 1],
        )
