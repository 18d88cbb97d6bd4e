"""What gates said of versions, where those who begin a rollout look: in the store.

playhead:rollout:verdict:MODEL:VERSION   the newest verdict on a version, JSON, kept for 90 days

A verdict is good against the champion that it compared the version with, and no other.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import orjson

KEPT_S: Final = 90 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """A gate's verdict in short; the report tells all.

    Attributes:
        model: the model.
        version: that was judged.
        against: the champion that it was compared with.
        passed: whether it may be tried on viewers.
        ts: when, UTC milliseconds.
        failed: checks that failed.
    """

    model: str
    version: str
    against: str
    passed: bool
    ts: int
    failed: tuple[str, ...] = ()

    @classmethod
    def load(cls, dumped: bytes) -> Self:
        """A verdict as it lies in the store.

        Raises:
            ValueError: it is something else.
        """
        document = orjson.loads(dumped)
        kinds = {"model": str, "version": str, "against": str, "passed": bool, "ts": int, "failed": list}
        if not isinstance(document, dict) or document.keys() != kinds.keys():
            raise ValueError("no verdict")
        if wrong := [name for name, kind in kinds.items() if type(document[name]) is not kind]:
            raise ValueError(f"no verdict: {', '.join(wrong)}")
        return cls(**{**document, "failed": tuple(map(str, document["failed"]))})

    def refusal(self, champion: str | None) -> str:
        """Why the version may not be tried beside a champion; empty: it may."""
        if self.against != champion:
            return f"passed against {self.against}" if self.passed else f"failed against {self.against}"
        return "" if self.passed else f"failed: {', '.join(self.failed) or 'its gate'}"


def verdict_key(model: str, version: str) -> str:
    """Key of the verdict on a version."""
    return f"playhead:rollout:verdict:{model}:{version}"


def verdict_arguments(verdict: GateVerdict) -> list[Any]:
    """The command that tells a verdict."""
    return ["SET", verdict_key(verdict.model, verdict.version), orjson.dumps(asdict(verdict)), "EX", KEPT_S]
