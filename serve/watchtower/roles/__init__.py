"""The roles of the Watchtower; a replica does a role's steps for as long as it has the role's lease.

`sessions:P` folds a partition of the log into sessions and windows, `slices:S` judges a shard of all slices, `outages`
makes outages of their alarms, `vitals` judges Playhead itself, `rollouts` decides which version of a model answers,
`online` measures what comes of its answers. A role's step writes what came out together with its checkpoint, in one
script that only the role's owner may run.
"""

from typing import Protocol


class Role(Protocol):
    """What a replica does for as long as it has the lease."""

    def step(self) -> bool:
        """Do what there is to do; whether there was anything.

        Raises:
            LeaseLost: the role is another replica's now.
        """
        ...
