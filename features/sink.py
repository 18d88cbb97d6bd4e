"""From a log in Redis to Parquet, one partition a day: events, from which models are trained, and other records.

At least once: records are acknowledged to the log only after their file is safely on disk, so a sink that dies leaves
either nothing or records that are written again. `read_log` drops what was written twice. The log is trimmed only up to
what every consumer group has acknowledged.
"""

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl
import redis

from features.events import Event
from features.settings import Settings
from features.stream import STREAM

GROUP: Final = "playhead:sink"

_POSITION: Final = "log_position"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A stream of records, and the table that they make.

    Attributes:
        name: what the records are, plural; names the sink in its own log.
        stream: the stream's key.
        field: of an entry, which holds the record.
        read: an entry's bytes -> a value for each column; raises ValueError for what is no record.
        schema: columns, as polars has them.
        time: the column, UTC milliseconds, whose date in UTC is the partition.
        key: the column of which a second record is the first again; by default, the position in the log.
        trims: whether entries leave the log once every consumer group has acknowledged them; else its writers bound it.
        keeps: how many of the newest stay all the same, for whoever else reads the log.
    """

    name: str
    stream: str
    field: bytes
    read: Callable[[bytes], Mapping[str, Any]]
    schema: Mapping[str, Any]
    time: str
    key: str = _POSITION
    trims: bool = True
    keeps: int = 0


def _read_event(dumped: bytes) -> dict[str, Any]:
    event = Event.model_validate_json(dumped)
    return event.model_dump() | {"kind": event.kind.value}


EVENTS: Final = Log(
    name="events",
    stream=STREAM,
    field=b"event",
    read=_read_event,
    schema={
        "event_id": pl.String,
        "profile_id": pl.String,
        "title_id": pl.String,
        "kind": pl.String,
        "ts": pl.Int64,
        "position_s": pl.Float64,
        "duration_s": pl.Float64,
        "request_id": pl.String,
        "row": pl.String,
        "rank": pl.Int32,
        "device": pl.String,
        "region": pl.String,
    },
    time="ts",
    key="event_id",
)
"""Watch events; columns are Event's fields."""

_OTHER_IDLE_MS: Final = 60_000
_TIMEOUT_S: Final = 10.0
_log = logging.getLogger(__name__)


class LogSink:
    """Drains a log into `folder/date=YYYY-MM-DD/part-*.parquet`. Blocking: give it a thread or a process.

    Files hold the log's columns and the record's position in it. The date is the record's own, in UTC. Entries that
    are no records go to `folder/rejected.txt`.

    Args:
        settings: where the log is.
        folder: where the files go; made if missing.
        log: which.
        consumer: name of this sink; a sink that starts again under its name takes up what it had not acknowledged.
        most: records of one round.
        wait_ms: how long a round waits for the first record.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        log: Log = EVENTS,
        *,
        consumer: str = "sink",
        most: int = 10_000,
        wait_ms: int = 1000,
    ) -> None:
        self._client: redis.Redis = redis.Redis.from_url(
            settings.redis_url, socket_timeout=_TIMEOUT_S + wait_ms / 1000, socket_connect_timeout=_TIMEOUT_S
        )
        self._folder = folder
        self._consumer = consumer
        self._log = log
        self._most = most
        self._wait_ms = wait_ms
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("date=*/.*.tmp"):
            left.unlink(missing_ok=True)

    def drain(self) -> int:
        """One round: read, write, acknowledge, trim.

        Returns:
            How many log entries were dealt with; 0 when the log had none within wait_ms.

        Raises:
            redis.RedisError: the log does not answer; nothing is lost, call again.
            OSError: the files cannot be written; nothing is lost, call again.
        """
        self._join()
        entries = self._mine() or self._abandoned() or self._new()
        if not entries:
            return 0
        self._store(entries)
        self._client.xack(self._log.stream, GROUP, *[position for position, _ in entries])
        self._trim()
        return len(entries)

    def run(self, stop: threading.Event, *, pause_s: float = 1.0) -> None:
        """Drain until told to stop; troubles, of the log and the disk or any other, are logged and waited out.

        Args:
            stop: set it to end.
            pause_s: wait after a failure, in seconds.
        """
        while not stop.is_set():
            try:
                self.drain()
            except Exception:  # noqa: BLE001 - a sink that ended would be missed by nobody: other logs are drained on
                _log.exception("sink of %s: round failed, will try again", self._log.name)
                stop.wait(pause_s)

    def backlog(self) -> int:
        """How many log entries are not trimmed yet."""
        length: Any = self._client.xlen(self._log.stream)
        return int(length)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _join(self) -> None:
        try:
            self._client.xgroup_create(self._log.stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _mine(self) -> list[Any]:
        """What this sink read before and never acknowledged."""
        return self._read("0", None)

    def _abandoned(self) -> list[Any]:
        """What another sink read long ago and never acknowledged."""
        claimed: Any = self._client.xautoclaim(
            self._log.stream, GROUP, self._consumer, min_idle_time=_OTHER_IDLE_MS, count=self._most
        )
        return list(claimed[1])

    def _new(self) -> list[Any]:
        return self._read(">", self._wait_ms)

    def _read(self, start: str, wait_ms: int | None) -> list[Any]:
        streams: Any = self._client.xreadgroup(
            GROUP, self._consumer, {self._log.stream: start}, count=self._most, block=wait_ms
        )
        return list(streams[0][1]) if streams else []

    def _store(self, entries: list[Any]) -> None:
        """Write entries to files; all are on disk when this returns."""
        log = self._log
        days: dict[str, dict[str, dict[str, Any]]] = {}
        rejected = []
        for position, fields in entries:
            try:
                row = {**log.read((fields or {}).get(log.field, b"")), _POSITION: position.decode()}
                day = _day(row[log.time])
            except (ValueError, OverflowError):
                rejected.append(fields)
                continue
            days.setdefault(day, {}).setdefault(row[log.key], row)
        for day, rows in days.items():
            frame = pl.DataFrame(list(rows.values()), schema={**log.schema, _POSITION: pl.String})
            _write_file(frame, self._folder / f"date={day}")
        if rejected:
            _log.error("sink of %s: %d log entries are none, see rejected.txt", log.name, len(rejected))
            _append_lines(self._folder / "rejected.txt", (repr(fields) for fields in rejected))

    def _trim(self) -> None:
        """Drop from the log what every group has acknowledged."""
        if not self._log.trims:
            return
        needed = []
        if self._log.keeps:
            excess = min(self.backlog() - self._log.keeps, self._most)
            if excess <= 0:
                return
            oldest: Any = self._client.xrange(self._log.stream, count=excess)
            needed.append(_after(oldest[-1][0]))
        groups: Any = self._client.xinfo_groups(self._log.stream)
        for group in groups:
            pending: Any = self._client.xpending(self._log.stream, group["name"])
            needed.append(pending["min"] if pending["pending"] else _after(group["last-delivered-id"]))
        self._client.xtrim(self._log.stream, minid=min(needed, key=_order), approximate=False)


def read_log(folder: Path, log: Log = EVENTS, *, since_ms: int = 0, where: pl.Expr | None = None) -> pl.DataFrame:
    """All records that a sink wrote, each once, in the log's columns and order.

    Events of a profile are in the order in which they were written; those of one batch are grouped by profile.

    Args:
        folder: the sink's folder; one that holds nothing gives an empty frame.
        log: which it was.
        since_ms: partitions of days before are left out, UTC milliseconds.
        where: only records of which this is true are read; of columns that every file has.
    """
    first = f"date={_day(since_ms)}"
    files = sorted(file for file in folder.glob("date=*/part-*.parquet") if file.parent.name >= first)
    if not files:
        return pl.DataFrame(schema=log.schema)
    parts = [pl.DataFrame(schema={**log.schema, _POSITION: pl.String})]  # files of before may lack columns: null there
    kept = pl.lit(value=True) if where is None else where
    parts += [pl.scan_parquet(file, hive_partitioning=False).filter(kept).collect() for file in files]
    position = pl.col(_POSITION).str.split("-").cast(pl.List(pl.Int64))  # milliseconds, sequence
    return (
        pl.concat(parts, how="diagonal")
        .sort(position.list.get(0), position.list.get(1))
        .unique(log.key, keep="first", maintain_order=True)
        .select(list(log.schema))
    )


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


def _order(position: bytes | str) -> tuple[int, int]:
    """A log position as two numbers."""
    time, _, sequence = (position.decode() if isinstance(position, bytes) else position).partition("-")
    return int(time), int(sequence)


def _after(position: bytes | str) -> str:
    """The first position after another."""
    time, sequence = _order(position)
    return f"{time}-{sequence + 1}"


def _write_file(frame: pl.DataFrame, folder: Path) -> None:
    """Write a new file that appears whole or not at all, and is on disk when this returns."""
    folder.mkdir(exist_ok=True)
    name = f"part-{uuid.uuid4().hex}.parquet"
    hidden = folder / f".{name}.tmp"
    try:
        with hidden.open("wb") as file:
            frame.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(folder / name)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def _append_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
