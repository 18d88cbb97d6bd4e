"""One judgement of an output, as it lies in the log and in files.

playhead:feedback           the log, a stream; its newest entries stay for GET /v1/feedback
playhead:feedback:id:ID     marks an id as taken: digest of what was judged, and the version that it was put down to
playhead:feedback:counts    how many of each model, version, kind and verdict, a hash
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Final, Literal, get_args

import orjson
import polars as pl

from features.sink import Log

STREAM: Final = "playhead:feedback"
FIELD: Final = b"feedback"
COUNTS: Final = "playhead:feedback:counts"
KEPT: Final = 20_000
"""Newest entries that stay in the log though they are in files."""

MOST_ENTRIES: Final = 200_000
"""Of the log; more are refused, for nothing that was acknowledged may be dropped."""

Kind = Literal["recommendation_row", "tag", "quality_score", "bitrate_decision", "outage"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Verdict = Literal["good", "bad", "unsure"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

Plain = str | int | float | bool

Source = Literal["exposure", "job", "outage", "caller"]
"""Who says which version made what is judged."""


def id_key(feedback_id: str) -> str:
    """Key that marks an id as taken."""
    return f"playhead:feedback:id:{feedback_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What somebody says of one output.

    Attributes:
        kind: of what.
        verdict: `good`, `bad`, or `unsure`: looked at, and neither can be said.
        reporter: who says so.
        request_id: the answer that holds the output.
        subject_id: the output itself: id of the outage, the quality job, the title, the session.
        row: of a home page: which row; None: the page, or does not apply.
        title_id: which title; None: all of the row, or does not apply.
        reason: why, in the reporter's words.
        version: that made it, as the reporter knows it.
        detail: more, by name.
    """

    kind: Kind
    verdict: Verdict
    reporter: str
    request_id: str | None = None
    subject_id: str | None = None
    row: str | None = None
    title_id: str | None = None
    reason: str = ""
    version: str | None = None
    detail: Mapping[str, Plain]

    @property
    def digest(self) -> str:
        """Names what is said: the same judgement has the same, whenever it comes."""
        dumped = orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)
        return blake2b(dumped, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A judgement that was taken.

    Attributes:
        feedback_id: names it for ever.
        ts: when it came, UTC milliseconds.
        model: whose output is judged; None: nobody knows.
        version: which version made it; None: nobody knows.
        version_from: who says so; None: nobody does.
        judgement: what is said.
    """

    feedback_id: str
    ts: int
    model: str | None
    version: str | None
    version_from: Source | None
    judgement: Judgement

    def dump(self) -> bytes:
        """As the log has it."""
        said = asdict(self.judgement)
        return orjson.dumps(said | {name: getattr(self, name) for name in _OWN})


_OWN: Final = ("feedback_id", "ts", "model", "version", "version_from")

_SCHEMA: Final[Mapping[str, Any]] = {
    "feedback_id": pl.String, "ts": pl.Int64, "kind": pl.String, "verdict": pl.String, "reporter": pl.String,
    "request_id": pl.String, "subject_id": pl.String, "row": pl.String, "title_id": pl.String, "reason": pl.String,
    "model": pl.String, "version": pl.String, "version_from": pl.String, "detail": pl.String,
}  # fmt: skip
_ABSENT: Final[Mapping[str, Any]] = dict.fromkeys(_SCHEMA) | {"reason": "", "detail": {}}


def read_feedback(dumped: bytes) -> dict[str, Any]:
    """An entry of the log, by name.

    Raises:
        ValueError: it is none.
    """
    document = orjson.loads(dumped)
    kinds = {"feedback_id": str, "ts": int, "kind": str, "verdict": str, "reporter": str}
    wrong = [
        name for name, kind in kinds.items() if not isinstance(document, dict) or type(document.get(name)) is not kind
    ]
    if wrong:
        raise ValueError(f"no feedback: {', '.join(wrong)}")
    return {name: document.get(name, absent) for name, absent in _ABSENT.items()}


def _read_row(dumped: bytes) -> dict[str, Any]:
    document = read_feedback(dumped)
    return document | {"detail": orjson.dumps(document["detail"]).decode()}


FEEDBACK: Final = Log(
    name="feedback", stream=STREAM, field=FIELD, read=_read_row, schema=_SCHEMA, time="ts", key="feedback_id",
    keeps=KEPT,
)  # fmt: skip
"""What people said; `detail` is JSON."""
