"""No skew between training and serving: what was read online at t is the point-in-time frame's row for t."""

import math
import random

import polars as pl
import pytest

from features.events import Event, EventKind
from features.offline import features_at, title_statistics
from features.online import OnlineFeatures
from features.popularity import TitleStatistics
from features.sink import EVENTS
from features.stream import EventWriter

PROFILES = [f"p{index}" for index in range(4)]


def as_frame(events):
    return pl.DataFrame([event.model_dump(mode="json") for event in events], schema=EVENTS.schema)


def random_log(rng, length):
    """Events in order of time, many at the same instant, with repeated contents under other ids."""
    now, events = rng.choice([0, 1_700_000_000_000]), []
    for index in range(length):
        now += rng.choice([0, 0, 1, 1000, 3_600_000])
        fields = {
            "profile_id": rng.choice(PROFILES),
            "title_id": f"t{rng.randrange(120)}",
            "kind": rng.choice(list(EventKind)),
            "ts": now,
            "position_s": rng.random() * 5000,
            "duration_s": rng.choice([0.0, 5400.0, 2700.3]),
            "region": rng.choice([None, "FR", "DE", "JP"]),
            "device": rng.choice([None, "tv", "phone"]),
        }
        if events and rng.random() < 0.1:
            fields |= rng.choice(events).model_dump(exclude={"event_id", "ts"})
        events.append(Event(event_id=f"e{index}", **fields))
    return events


@pytest.mark.parametrize(("seed", "length"), [(1, 60), (2, 300), (3, 1600)])
async def test_online_is_point_in_time(settings, seed, length):
    rng = random.Random(seed)
    log = random_log(rng, length)
    late = sorted(rng.sample(range(length), length // 10))
    on_time = [event for index, event in enumerate(log) if index not in set(late)]
    writer, reader, titles = EventWriter(settings), OnlineFeatures(settings), TitleStatistics(settings)

    moments = sorted(rng.sample(sorted({event.ts for event in on_time}), min(6, length)))
    sent = 0
    for moment in [*moments, on_time[-1].ts]:
        while sent < len(on_time) and on_time[sent].ts <= moment:
            batch = [event for event in on_time[sent : sent + rng.randrange(1, 30)] if event.ts <= moment]
            sent += len(batch)
            await writer.write(batch + rng.choices(on_time[:sent], k=3))
        read = [await reader.read(profile, 5000.0) for profile in PROFILES]
        rows = pl.DataFrame({"profile_id": PROFILES, "ts": [moment] * len(PROFILES)})
        assert read == features_at(as_frame(on_time), rows)
        assert all(profile.degraded == () for profile in read)
    assert sent == len(on_time)

    again = [log[index] for index in late] + rng.choices(log, k=length // 5)
    rng.shuffle(again)
    for start in range(0, len(again), 50):
        await writer.write(again[start : start + 50])
    rows = pl.DataFrame({"profile_id": PROFILES, "ts": [log[-1].ts] * len(PROFILES)})
    doubled = pl.concat([as_frame(again), as_frame(log)]).sample(fraction=1.0, shuffle=True, seed=seed)
    assert [await reader.read(profile) for profile in PROFILES] == features_at(doubled, rows)

    offline = title_statistics(doubled)
    online = await titles.read_all(sorted({event.title_id for event in log}))
    assert set(online) == set(offline)
    for title, expected in offline.items():
        got = online[title]
        assert math.isclose(got.trend, expected.trend, rel_tol=1e-12, abs_tol=1e-9) or got.trend == expected.trend
        for name in ("impressions", "plays", "finishes", "thumbs_up", "thumbs_down", "last_ts_ms"):
            assert getattr(got, name) == getattr(expected, name)
    for part in (writer, reader, titles):
        await part.close()
