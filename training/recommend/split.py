"""What trains, what validates and what tests."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from training.recommend.interactions import Interactions, Ints, Prefix

HELD_OUT: Final = 0.15
"""Of the users with new interactions, the share that validates, and the share that tests."""

LEAST_NEW: Final = 400
"""Users with new interactions below which they tell too little."""

REPLAY: Final = 1.0
"""Old histories that are rehearsed for each new one, so that what is still true is not forgotten (experience replay,
Rolnick et al. 2019)."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which interactions train, which validate, and which test.

    Attributes:
        train: P stretches to fit.
        validation: what precedes each validation target.
        test: what precedes each test target, the validation target included.
        validation_targets: rows.
        test_targets: rows.
        since_s: of a stretch that reaches past this time (UTC seconds) only what is later is fitted; 0: all is.
    """

    train: tuple[Prefix, ...]
    validation: tuple[Prefix, ...]
    test: tuple[Prefix, ...]
    validation_targets: Ints
    test_targets: Ints
    since_s: int = 0

    @classmethod
    def leave_one_out(cls, interactions: Interactions) -> "Split":
        """The newest title of each user tests, the one before it validates, the rest trains.

        Users with fewer than three interactions only train.
        """
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

    @classmethod
    def newer(cls, interactions: Interactions, since_s: int, *, seed: int) -> "Split":
        """For a model that knows what was before: what is new trains, with old histories rehearsed beside it.

        Of the users with something new, HELD_OUT validate and as many test, each by its newest title after all that it
        did before; the others train.

        Args:
            interactions: all of them.
            since_s: what is later is new, UTC seconds.
            seed: of who is held out, and whose old history is rehearsed.
        """
        lengths, ends = interactions.lengths(), interactions.offsets[1:]
        newest = np.where(lengths > 0, interactions.times[np.maximum(ends - 1, 0)], -1)
        random = np.random.default_rng(seed)
        new = random.permutation(np.nonzero((newest > since_s) & (lengths >= 2))[0])
        held = round(HELD_OUT * len(new))
        validation, test, fresh = np.sort(new[:held]), np.sort(new[held : 2 * held]), new[2 * held :]
        old = np.nonzero((newest <= since_s) & (lengths >= 2))[0]
        rehearsed = random.choice(old, min(len(old), round(REPLAY * len(fresh))), replace=False)
        return cls(
            train=tuple(interactions.prefix(user, 0) for user in np.sort(np.concatenate([fresh, rehearsed])).tolist()),
            validation=tuple(interactions.prefix(user, 1) for user in validation.tolist()),
            test=tuple(interactions.prefix(user, 1) for user in test.tolist()),
            validation_targets=interactions.rows[ends[validation] - 1],
            test_targets=interactions.rows[ends[test] - 1],
            since_s=since_s,
        )


def split_since(interactions: Interactions, since_s: int, *, seed: int) -> Split:
    """`Split.newer` where LEAST_NEW users did something new, else leave-one-out.

    Args:
        interactions: all of them.
        since_s: what is later is new, UTC seconds; 0: everything is.
        seed: of who is held out.
    """
    if since_s:
        newer = Split.newer(interactions, since_s, seed=seed)
        if len(newer.validation) >= HELD_OUT * LEAST_NEW:
            return newer
    return Split.leave_one_out(interactions)
