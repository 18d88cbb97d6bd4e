"""What must be true of a data set before a model learns from it; what is not true is named with counts and examples.

Single values are judged by the rules of an import (training.datasets.validation). What only shows beside the data of
the run before, such as a volume that fell, is judged against its profile. Leaks are events that the model could not
have known: at or after the cut, from the future, or answers that come before their question.

An error stops the job; a warning goes into the record. Where the run before used a data set of another name, what is
compared with it only warns. Snapshots of a model's updates, whose names differ by their times, count as one name for
volume and freshness, which no viewers change; shares of kinds, which they may, only warn there.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import polars as pl

from features.events import CLOCK_TOLERANCE_MS, EventKind
from serve.clock import utc
from serve.errors import PlayheadError
from training.data_profiles import DataProfile, profile_of, read_profile, write_profile
from training.datasets.dataset import Dataset
from training.datasets.problems import FILE, ROW, Problem
from training.datasets.schema import TABLES, TableName, polars_schema
from training.datasets.validation import check_keys, check_titles_known, check_values

__all__ = [
    "DataProblem",
    "DataProfile",
    "DataRefused",
    "DataReport",
    "Limits",
    "check_data",
    "profile_of",
    "read_profile",
    "require",
    "write_profile",
]

Severity = Literal["error", "warning"]

_DAY_MS: Final = 24 * 3_600_000
_EXAMPLES: Final = 5
_TIME: Final = re.compile(r"-[0-9]{13}$")
_NEEDED: Final = (EventKind.PLAY.value, EventKind.FINISH.value)
"""Kinds without which there is nothing to learn."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a difference becomes a problem.

    Attributes:
        fall: least share of the events (and titles) of the run before.
        growth: most times as many events as in the run before; more warns.
        back_ms: how much older the newest event may be than that of the run before.
        stale_ms: age of the newest event that warns.
        jump: difference of a kind's share that warns; twice as much over all events is an error.
        same: share of events that differ in their id only; ten times as much is an error.
        order: share of answers before their question that is an error; fewer warn.
    """

    fall: float = 0.5
    growth: float = 5.0
    back_ms: int = _DAY_MS
    stale_ms: int = 14 * _DAY_MS
    jump: float = 0.15
    same: float = 0.02
    order: float = 0.01


@dataclass(frozen=True, kw_only=True)
class DataProblem:
    """One thing that is not as it must be.

    Attributes:
        check: schema, values, duplicates, titles, volume, freshness, kinds or leakage.
        severity: error stops the job.
        where: table and column.
        count: how many rows; 0 where it concerns the whole.
        examples: some of the wrong values or ids.
        got: what came.
        expected: what would have been right.
        next_step: what to do.
    """

    check: str
    severity: Severity
    where: str
    count: int = 0
    examples: tuple[str, ...] = ()
    got: str
    expected: str
    next_step: str

    def __str__(self) -> str:
        """One line for a terminal or a log."""
        rows = f" in {self.count:,} rows" if self.count else ""
        named = f" ({', '.join(self.examples)})" if self.examples else ""
        what = f"got {self.got}{named}, expected {self.expected}"
        return f"{self.severity}: {self.check}, {self.where}{rows}: {what}. {self.next_step}"


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found.

    Attributes:
        dataset: the data set's name.
        problems: errors first.
        profile: the data set in numbers.
    """

    dataset: str
    problems: tuple[DataProblem, ...]
    profile: DataProfile

    @property
    def errors(self) -> tuple[DataProblem, ...]:
        """What stops the job."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether a model may learn from it."""
        return not self.errors

    def as_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        problems = [asdict(problem) for problem in self.problems]
        return {"dataset": self.dataset, "ok": self.ok, "problems": problems, "profile": self.profile.as_json()}


class DataRefused(PlayheadError):
    """Data that no model should learn from."""

    status = 422
    title = "Data refused"


def require(report: DataReport) -> None:
    """Stop where the data is not as it must be.

    Raises:
        DataRefused: naming each error.
    """
    if report.ok:
        return
    first = report.errors[0]
    refused = DataRefused(
        field=f"data set {report.dataset}: {first.check}, {first.where}",
        got=first.got,
        expected=first.expected,
        next_step=first.next_step,
    )
    refused.got = "; ".join(str(problem) for problem in report.errors)[:2000]
    raise refused


def check_data(
    dataset: Dataset,
    previous: DataProfile | None,
    *,
    until_ms: int | None = None,
    now_ms: int | None = None,
    limits: Limits | None = None,
) -> DataReport:
    """Judge a data set.

    Args:
        dataset: what a model is to learn from.
        previous: profile of what the model learned from before; None: nothing is compared.
        until_ms: what is at this time or later must not be there, UTC milliseconds; None: no cut.
        now_ms: UTC milliseconds; the clock's time if not given.
        limits: where a difference becomes a problem.
    """
    limits = limits or Limits()
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    problems: list[DataProblem] = []
    frames: dict[TableName, pl.DataFrame] = {}
    for table in TABLES:
        frame, found = _read(dataset, table, now_ms)
        problems += found
        if frame is not None:
            frames[table] = frame
    if "events" in frames:
        events = frames["events"]
        problems += _same(events, limits)
        problems += _leaks(events, until_ms, now_ms, limits)
        if "titles" in frames:
            problems += [_as_found("titles", one) for one in check_titles_known(events, frames["titles"])]
    profile = profile_of(dataset, frames)
    problems += _stale(profile, until_ms or now_ms, limits)
    if previous is not None:
        problems += _compared(profile, previous, limits)
    problems.sort(key=lambda problem: problem.severity)  # error before warning
    return DataReport(dataset=dataset.name, problems=tuple(problems), profile=profile)


def _read(dataset: Dataset, table: TableName, now_ms: int) -> tuple[pl.DataFrame | None, list[DataProblem]]:
    """A table with its rows numbered, None where it is unusable; and what is wrong with columns, values and keys."""
    again = "Take the snapshot, or prepare the data set, again."
    try:
        frame = dataset.frame(table)
    except (OSError, pl.exceptions.PolarsError) as error:
        return None, [
            DataProblem(
                check="schema", severity="error", where=table, got=str(error)[:200], expected="a Parquet table",
                next_step=again,
            )
        ]  # fmt: skip
    schema = polars_schema(table)
    wrong = [
        f"{name} {frame.schema.get(name, 'missing')}" for name in schema if frame.schema.get(name) != schema[name]
    ] + [f"{name} (unknown)" for name in frame.columns if name not in schema]
    if wrong:
        return None, [
            DataProblem(
                check="schema", severity="error", where=table, got=", ".join(wrong),
                expected=", ".join(f"{name} {kind}" for name, kind in schema.items()), next_step=again,
            )
        ]  # fmt: skip
    frame = frame.with_columns(pl.lit(table).alias(FILE)).with_row_index(ROW, offset=1)
    found = [] if frame.is_empty() and table == "profiles" else check_values(frame, table, now_ms)
    problems = [_as_found("values", one) for one in found]
    first, dropped, found = check_keys(frame, table)
    problems += [_as_found("duplicates", one) for one in found]
    if dropped and not found:
        repeated = frame.filter(~pl.col("event_id").is_first_distinct())["event_id"]
        problems.append(
            DataProblem(
                check="duplicates", severity="error", where=f"{table}, event_id", count=dropped,
                examples=tuple(repeated.unique(maintain_order=True).head(_EXAMPLES)), got="events that came twice",
                expected="each event once", next_step="Drop the repeated events; a snapshot does.",
            )
        )  # fmt: skip
    return first, problems


def _as_found(check: str, problem: Problem) -> DataProblem:
    """A problem of an import as one of ours."""
    rows = tuple(f"row {row}" for row in problem.rows)
    where = problem.file + (f", {problem.column}" if problem.column else "")
    return DataProblem(
        check=check, severity="error", where=where, count=problem.count, examples=rows, got=problem.got,
        expected=problem.expected, next_step=problem.next_step,
    )  # fmt: skip


def _same(events: pl.DataFrame, limits: Limits) -> list[DataProblem]:
    """Events that differ in their id only: a client that sends again under new ids."""
    content = ["profile_id", "title_id", "kind", "ts", "position_s"]
    again = events.filter(~pl.struct(content).is_first_distinct())
    share = again.height / max(events.height, 1)
    if share <= limits.same:
        return []
    return [
        DataProblem(
            check="duplicates", severity="error" if share > 10 * limits.same else "warning",
            where="events", count=again.height, examples=tuple(again["event_id"].head(_EXAMPLES)),
            got=f"{share:.1%} of events alike but for their id", expected=f"at most {limits.same:.0%}",
            next_step="Have the client keep an event's id when it sends it again.",
        )
    ]  # fmt: skip


def _leaks(events: pl.DataFrame, until_ms: int | None, now_ms: int, limits: Limits) -> list[DataProblem]:
    problems = []
    if until_ms is not None:
        problems += _late(events.filter(pl.col("ts") >= until_ms), f"nothing at {until_ms} or later, the cut")
    plays = events.filter((pl.col("kind") == EventKind.PLAY.value) & (pl.col("ts") > now_ms + CLOCK_TOLERANCE_MS))
    problems += _late(plays, f"no play after now, {now_ms}")
    by_viewing = ["profile_id", "title_id"]
    by_request = ["request_id", *by_viewing]
    shown = events.filter(pl.col("request_id").is_not_null())
    problems += _before(shown, by_request, "impression", "play", "a play before what was shown for it", limits)
    begun = events.filter(
        (pl.col("kind") != EventKind.FINISH.value) | (pl.col("ts") >= pl.col("ts").min() + _DAY_MS)
    )  # what is finished when the data begins was played before
    problems += _before(begun, by_viewing, "play", "finish", "a finish before the first play", limits)
    return problems


def _late(events: pl.DataFrame, expected: str) -> list[DataProblem]:
    if events.is_empty():
        return []
    return [
        DataProblem(
            check="leakage", severity="error", where="events, ts", count=events.height,
            examples=tuple(events["event_id"].head(_EXAMPLES)), got=f"events up to {events['ts'].max()!r}",
            expected=expected, next_step="Take the snapshot with that cut, and look at the clocks of who sent these.",
        )
    ]  # fmt: skip


def _before(
    events: pl.DataFrame, keys: list[str], question: str, answer: str, got: str, limits: Limits
) -> list[DataProblem]:
    """Answers whose first comes before the first question of the same keys."""
    firsts = events.group_by(keys).agg(
        asked=pl.col("ts").filter(pl.col("kind") == question).min(),
        answered=pl.col("ts").filter(pl.col("kind") == answer).min(),
        example=pl.col("event_id").filter(pl.col("kind") == answer).first(),
    )
    both = firsts.drop_nulls(["asked", "answered"])
    wrong = both.filter(pl.col("answered") < pl.col("asked")).sort("example")
    share = wrong.height / max(both.height, 1)
    if wrong.is_empty():
        return []
    return [
        DataProblem(
            check="leakage", severity="error" if share > limits.order else "warning", where="events, ts",
            count=wrong.height, examples=tuple(wrong["example"].head(_EXAMPLES)), got=f"{got}, {share:.1%} of such",
            expected=f"each {question} before its {answer}",
            next_step="Correct the times: the model would learn from what it cannot know yet.",
        )
    ]  # fmt: skip


def _stale(profile: DataProfile, at_ms: int, limits: Limits) -> list[DataProblem]:
    if not profile.events or at_ms - profile.last_ts_ms <= limits.stale_ms:
        return []
    return [
        DataProblem(
            check="freshness", severity="warning", where="events, ts",
            got=f"a newest event {(at_ms - profile.last_ts_ms) / _DAY_MS:.1f} days old",
            expected=f"at most {limits.stale_ms / _DAY_MS:.0f} days",
            next_step="See that the sink runs, and that events reach it.",
        )
    ]  # fmt: skip


def _compared(profile: DataProfile, previous: DataProfile, limits: Limits) -> list[DataProblem]:
    """What differs too much from what was learned from before."""
    worst: Severity = "error" if _family(profile.dataset) == _family(previous.dataset) else "warning"
    jumped: Severity = "error" if profile.dataset == previous.dataset else "warning"
    than = f"of the run before ({previous.dataset} {previous.snapshot[:12]})"
    problems = []
    for where, now, before in (
        ("events", profile.events, previous.events),
        ("titles", profile.titles, previous.titles),
    ):
        if now < limits.fall * before:
            problems.append(
                DataProblem(
                    check="volume", severity=worst, where=where, got=f"{now:,}",
                    expected=f"at least {limits.fall:.0%} of the {before:,} {than}",
                    next_step="Find out what was lost: partitions of the log, or a part of the catalogue.",
                )
            )  # fmt: skip
    if profile.events > limits.growth * previous.events:
        problems.append(
            DataProblem(
                check="volume", severity="warning", where="events", got=f"{profile.events:,}",
                expected=f"at most {limits.growth:g} times the {previous.events:,} {than}",
                next_step="See whether a client sends far too much.",
            )
        )  # fmt: skip
    if profile.last_ts_ms < previous.last_ts_ms - limits.back_ms:
        problems.append(
            DataProblem(
                check="freshness", severity=worst, where="events, ts",
                got=f"a newest event at {utc(profile.last_ts_ms)}",
                expected=f"one not older than {utc(previous.last_ts_ms)}, the newest {than}",
                next_step="See that the newest partitions of the log are there.",
            )
        )  # fmt: skip
    for part, kinds, kinds_before in (
        ("kinds of all events", profile.kinds, previous.kinds),
        ("kinds of the newest tenth", profile.recent_kinds, previous.recent_kinds),
    ):
        problems += _jumps(kinds, kinds_before, part, jumped if part == "kinds of all events" else "warning", limits)
    return problems


def _family(dataset: str) -> str:
    """A data set's name without the time, UTC milliseconds, that an update puts behind its snapshot's."""
    return _TIME.sub("", dataset)


def _jumps(
    now: Mapping[str, float], before: Mapping[str, float], where: str, worst: Severity, limits: Limits
) -> list[DataProblem]:
    problems = []
    for kind in sorted({*now, *before}):
        share, was = now.get(kind, 0.0), before.get(kind, 0.0)
        gone = kind in _NEEDED and was > 0.01 and share == 0.0
        if not gone and abs(share - was) <= limits.jump:
            continue
        heavy = gone or abs(share - was) > 2 * limits.jump
        problems.append(
            DataProblem(
                check="kinds", severity="error" if gone else worst if heavy else "warning", where=where,
                examples=(kind,), got=f"{share:.1%} {kind}", expected=f"about the {was:.1%} of the run before",
                next_step=f"See whether players still send {kind} as they did.",
            )
        )  # fmt: skip
    return problems
