"""Sessions that are over as records, what many of them come down to, and the quality of what they played."""

from collections.abc import Mapping
from typing import Any

import orjson
import polars as pl
import pytest
import redis

from features.renditions import Rendition, Rung, read_rungs, rendition_key, store_renditions
from features.settings import Settings
from features.sink import LogSink, read_log
from serve.telemetry import records
from serve.telemetry.quality import TitleQuality
from serve.telemetry.records import SESSIONS, dump_record, experience
from serve.telemetry.sessions import Summary

T0 = 1_790_000_000_000


def summary(name: str = "a", **values: Any) -> Summary:
    usual: dict[str, Any] = {
        "session": name, "leaf": ("north", "", "eu", "tv", "", "t", "dash"), "first_ms": T0, "last_ms": T0 + 100_000,
        "started": True, "startup_ms": 900.0, "played_ms": 90_000, "stall_ms": 10_000.0, "stalls": 1,
        "mean_kbps": 3000.0, "at_kbps": {3000: 90_000}, "switches": 2, "errors": 0, "end": "ended",
    }  # fmt: skip
    return Summary(**{**usual, **values})


def frame(*given: tuple[Summary, float | None]) -> pl.DataFrame:
    rows = [SESSIONS.read(dump_record(one, vmaf)) for one, vmaf in given]
    return pl.DataFrame(rows, schema=SESSIONS.schema)


def test_a_record_says_what_the_session_was() -> None:
    (row,) = frame((summary(), 81.5)).to_dicts()
    assert row["cdn"] == "north"
    assert (row["asn"], row["app"]) == (None, None), "unknown"
    assert (row["startup_ms"], row["mean_vmaf"], row["last_ts"]) == (900.0, 81.5, T0 + 100_000)
    (row,) = frame((summary(started=False, startup_ms=0.0, mean_kbps=0.0), None)).to_dicts()
    assert (row["startup_ms"], row["mean_kbps"], row["mean_vmaf"]) == (None, None, None)


@pytest.mark.parametrize(
    "change", [{"last_ts": None}, {"last_ts": "today"}, {"played_ms": 1.5}, {"more": 1}, {"cdn": ["x"]}]
)
def test_what_is_no_record_is_refused(change: Mapping[str, Any]) -> None:
    document = orjson.loads(dump_record(summary(), None))
    with pytest.raises(ValueError):
        SESSIONS.read(orjson.dumps({**document, **change}))
    with pytest.raises(ValueError):
        SESSIONS.read(b"{")


def test_sessions_come_down_to_shares_and_weighted_means() -> None:
    nothing: dict[str, Any] = {"started": False, "startup_ms": 0.0, "played_ms": 0, "stall_ms": 0.0, "stalls": 0,
                               "mean_kbps": 0.0, "switches": 0}  # fmt: skip
    given = frame(
        (summary("long", played_ms=270_000, mean_kbps=5000.0), 90.0),
        (summary("short", startup_ms=2_000.0, end="failed"), 50.0),
        (summary("unrated", stall_ms=0.0, stalls=0, mean_kbps=1000.0, end="vanished"), None),
        (summary("gone", **nothing, last_ms=T0 + 500, end="quit"), None),
        (summary("waited", **nothing, last_ms=T0 + 9_000, end="quit"), None),
        (summary("refused", **nothing, last_ms=T0 + 300, end="failed"), None),
        (summary("elsewhere", leaf=("west", "", "us", "tv", "", "t", "dash"), played_ms=0, stall_ms=0.0), None),
    )
    north, west = experience(given, ["cdn"]).to_dicts()
    assert (north["cdn"], north["sessions"], west["cdn"], west["sessions"]) == ("north", 6, "west", 1)
    assert north["failed_starts"] == pytest.approx(2 / 6)
    assert north["left_before_start"] == pytest.approx(1 / 6)
    assert (north["failed"], north["vanished"]) == pytest.approx((1 / 6, 1 / 6))
    assert north["startup_p50_s"] == 0.9
    assert north["rebuffer_ratio"] == pytest.approx(20 / 470)
    assert north["played_h"] == pytest.approx(450 / 3600)
    assert north["stalls_per_hour"] == pytest.approx(2 / (450 / 3600))
    assert north["kbps"] == pytest.approx((270 * 5000 + 90 * 3000 + 90 * 1000) / 450)
    assert north["vmaf"] == pytest.approx((270 * 90 + 90 * 50) / 360)
    assert (west["rebuffer_ratio"], west["vmaf"], west["stalls_per_hour"]) == (None, None, None)
    (all_,) = experience(given).to_dicts()
    assert all_["sessions"] == 7
    assert "cdn" not in all_
    assert experience(given.clear(), ["cdn"]).is_empty()


def test_records_reach_files_and_come_back(settings: Settings, store: redis.Redis) -> None:
    for name in ("a", "b"):
        store.xadd(records.STREAM, {records.FIELD: dump_record(summary(name), 70.0)})
    store.xadd(records.STREAM, {records.FIELD: b"{}"})
    sink = LogSink(settings, settings.home / "sessions", SESSIONS, wait_ms=20)
    try:
        assert sink.drain() == 3
    finally:
        sink.close()
    found = read_log(settings.home / "sessions", SESSIONS)
    assert found["session"].to_list() == ["a", "b"]
    assert read_log(settings.home / "sessions", SESSIONS, since_ms=T0 + 2 * 86_400_000).is_empty()
    assert len((settings.home / "sessions" / "rejected.txt").read_text().splitlines()) == 1


def test_quality_is_by_time_at_each_bitrate(settings: Settings, store: redis.Redis) -> None:
    ladder = [Rendition(1000, 4.0, [1, 1], [50.0, 70.0]), Rendition(4000, 4.0, [1, 1], [90.0, 90.0])]
    store_renditions(settings, {"t": ladder, "unrated": [Rendition(1000, 4.0, [1])]}, ts_ms=1)
    store.set(rendition_key("strange", 0), b"text")
    assert read_rungs(store, ["t", "unrated", "none", "strange"]) == {
        "t": (Rung(1000, 60.0), Rung(4000, 90.0)), "unrated": (), "none": (), "strange": (),
    }  # fmt: skip
    clock = [0.0]
    quality = TitleQuality(store, lambda: clock[0])
    assert quality.mean_vmaf("t", {1000: 5}) is None, "it was not read"
    quality.read(["t", "none"])
    assert quality.mean_vmaf("t", {1000: 30_000, 4000: 10_000}) == pytest.approx(67.5)
    assert quality.mean_vmaf("t", {2000: 1}) == pytest.approx(75), "midway by its logarithm"
    assert quality.mean_vmaf("t", {10: 1}) == 60
    assert quality.mean_vmaf("t", {90_000: 1, -4: 5, 0: 7}) == 90
    assert quality.mean_vmaf("t", {}) is None
    assert quality.mean_vmaf("none", {1000: 1}) is None
    store_renditions(settings, {"t": [Rendition(1000, 4.0, [1], [20.0])]}, ts_ms=2)
    quality.read(["t"])
    assert quality.mean_vmaf("t", {1000: 1}) == 60, "in memory"
    clock[0] = 601.0
    quality.read(["t"])
    assert quality.mean_vmaf("t", {1000: 1}) == 20


def test_titles_are_asked_for_in_bounded_numbers(settings: Settings, store: redis.Redis) -> None:
    names = [f"t{place}" for place in range(150)]
    store_renditions(settings, {name: [Rendition(1000, 4.0, [1], [80.0])] for name in names}, ts_ms=1)
    found = read_rungs(store, names)
    assert list(found) == names
    assert set(found.values()) == {(Rung(1000, 80.0),)}
