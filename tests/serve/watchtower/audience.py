"""An audience's reports in the log, and what one process that never dies makes of them."""

import random
from typing import Any

import redis

from serve.telemetry.log import FIELD, PARTITIONS, Said, reports_of, stream_key
from serve.telemetry.sessions import Sessions, Summary
from serve.telemetry.windows import WINDOW_MS, Window
from serve.watchtower import board

MINUTES = 25
BROKEN_FROM_S = 20 * 60

Entry = tuple[int, int, bytes]
"""When, partition, bytes."""


def audience(start_ms: int, minutes: int = MINUTES, seed: int = 0) -> list[Entry]:
    """What 2 sessions a second say; from BROKEN_FROM_S on, the CDN north breaks half of its starts and playbacks."""
    rng = random.Random(seed)
    said: list[tuple[int, dict[str, Any], dict[str, str]]] = []
    for place in range(minutes * 60 * 2):
        at = rng.randrange(minutes * 60_000)
        cdn, region = rng.choice(("north", "north", "south", "west")), rng.choice(("eu", "us"))
        context = {"region": region, "device": rng.choice(("tv", "phone")), "asn": f"{region}-{rng.randrange(3)}"}
        base = {"sid": f"s{place}", "cdn": cdn, "cid": f"t{rng.randrange(9)}", "sf": "d"}

        def say(when: int, number: int, base: dict[str, Any] = base, context: Any = context, **values: Any) -> None:
            said.append((when, {**base, "ts": start_ms + when, "sn": number, **values}, context))

        def broken(when: int, cdn: str = cdn) -> bool:
            return cdn == "north" and when >= BROKEN_FROM_S * 1000 and rng.random() < 0.5

        say(at, 0, e="ps", sta="s")
        if broken(at):
            say(at + 900, 1, e="e", sta="f", ec="7")
            continue
        say(at + 900, 1, e="ps", sta="p", br={"v": 3000}, mtp={"v": rng.randrange(4000, 30000)})
        end, number = at + rng.randrange(30_000, 400_000), 2
        for when in range(at + 30_000, end, 30_000):
            state = "r" if broken(when) or rng.random() < 0.01 else "p"
            say(when, number, e="t" if state == "p" else "ps", sta=state, br={"v": 3000}, mtp={"v": 9000})
            number += 1
        say(end, number, e="ps", sta="e")
    said.sort(key=lambda one: one[0])
    entries = []
    for place in range(0, len(said), 20):
        batch = [one for one in said[place : place + 20] if one[0] < minutes * 60_000]
        for one in batch:
            ((partition, entry),) = Said(start_ms + one[0], one[2], [one[1]]).parts().items()
            entries.append((start_ms + one[0], partition, entry))
    return entries


def append(store: redis.Redis, entries: list[Entry]) -> None:
    pipe = store.pipeline(transaction=False)
    for sequence, (at, partition, entry) in enumerate(entries):
        pipe.xadd(stream_key(partition), {FIELD: entry}, id=f"{at}-{sequence + 1}")
    pipe.execute()


def expected_windows(entries: list[Entry]) -> dict[int, Window]:
    """Window by window, as one process that never dies sees them."""
    by_partition: dict[int, Sessions] = {}
    windows: dict[int, Window] = {}
    last = entries[-1][0] // WINDOW_MS * WINDOW_MS
    for at, partition, entry in entries:
        sessions = by_partition.setdefault(partition, Sessions(at))
        for window in sessions.advance(at):
            windows.setdefault(window.start_ms, Window(window.start_ms)).merge(window)
        for report in reports_of(entry):
            sessions.take(report, at)
    for sessions in by_partition.values():
        for window in sessions.advance(last):
            windows.setdefault(window.start_ms, Window(window.start_ms)).merge(window)
    return {start: window for start, window in windows.items() if start < last}


def expected_records(entries: list[Entry]) -> set[tuple[str, str, float]]:
    """Sessions that are over by the last entry's window, as one process that never dies sees them."""
    over: list[Summary] = []
    by_partition: dict[int, Sessions] = {}
    for at, partition, entry in entries:
        sessions = by_partition.setdefault(partition, Sessions(at, closed=over.append))
        for _ in sessions.advance(at):
            pass
        for report in reports_of(entry):
            sessions.take(report, at)
    for sessions in by_partition.values():
        for _ in sessions.advance(entries[-1][0] // WINDOW_MS * WINDOW_MS):
            pass
    return {(one.session, one.end, one.played_ms) for one in over}


def read_up_to(store: redis.Redis, end_ms: int) -> bool:
    found = store.hgetall(board.PROGRESS)
    return len(found) == PARTITIONS and all(int(told.split(b":")[0]) >= end_ms for told in found.values())


def outages(store: redis.Redis) -> list[Any]:
    return [board.load_outage(dumped) for dumped in store.hvals(board.OUTAGES)]
