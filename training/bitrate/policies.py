"""What a bitrate policy is, to the simulator and the evaluation."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import Observations
from training.bitrate.simulator import Sessions


class Policy(Protocol):
    """Chooses the rung of the next segment, for a batch of sessions at once."""

    @property
    def name(self) -> str:
        """As tables print it."""
        ...

    def start(self, n: int) -> None:
        """Forget everything: `n` sessions begin."""
        ...

    def choose(self, observations: Observations, sessions: Sessions) -> NDArray[np.int64]:
        """Rung of each session (B,). Only oracles, such as the optimum, may look into `sessions`."""
        ...
