"""What the learner does, as it lies in the store: each step of each update, for operators and for the learner itself.

playhead:learning:steps         steps of all models, a stream
playhead:learning:state:MODEL   what the learner remembers of a model, JSON

An update goes through snapshot, checks, training, gate and rollout; a step begins, and is done or failed. Each has an
evidence of its own: the rows of the snapshot, the metrics of the version, the verdict of the gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self, get_args

import orjson

STEPS: Final = "playhead:learning:steps"
STEP: Final = b"step"
"""Field of the stream's entries."""

MOST_STEPS: Final = 10_000

Name = Literal["update", "snapshot", "checks", "training", "gate", "rollout"]
Moment = Literal["begun", "done", "failed"]


def state_key(model: str) -> str:
    """Key of what the learner remembers of a model."""
    return f"playhead:learning:state:{model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of an update.

    Attributes:
        model: whose.
        update: names the update.
        name: which step; `update` is the whole.
        moment: begun, done, or failed.
        ts: when, UTC milliseconds.
        text: what happened, in words.
        evidence: figures; JSON.
    """

    model: str
    update: str
    name: Name
    moment: Moment
    ts: int
    text: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """The reverse of `as_json`.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(document, dict) or document.keys() - set(cls.__slots__):
            raise ValueError("no step")
        kinds: Mapping[str, type] = {"model": str, "update": str, "ts": int, "text": str, "evidence": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(document.get(name), kind)]
        for name, allowed in (("name", get_args(Name)), ("moment", get_args(Moment))):
            wrong += [name] * (document.get(name) not in allowed)
        if wrong:
            raise ValueError(f"no step: {', '.join(wrong)}")
        return cls(**document)


def step_arguments(step: Step) -> list[Any]:
    """The command that tells a step."""
    return ["XADD", STEPS, "MAXLEN", "~", MOST_STEPS, "*", STEP, orjson.dumps(step.as_json())]


def load_steps(entries: Sequence[Any]) -> list[Step]:
    """Steps of the stream's entries; what is none is left out."""
    steps = []
    for _, fields in entries:
        pairs = fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))
        try:
            steps.append(Step.from_json(orjson.loads(pairs[STEP])))
        except (KeyError, ValueError):
            continue
    return steps
