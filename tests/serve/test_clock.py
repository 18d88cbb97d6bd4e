import time

import pytest

from serve.clock import utc, utc_brief


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_times_are_told_in_utc_whatever_the_machines_zone(zone, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        assert utc(1_796_000_521_999) == "2026-11-30 01:02:01 UTC"
        assert utc_brief(1_796_000_521_999) == "11-30 01:02:01"
    time.tzset()
