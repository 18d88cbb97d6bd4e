"""Players that ask Playhead for each segment, one ahead: they fetch what it says, and play on when it is gone."""

import pytest

from tests.browser.conftest import Browser, Viewing
from tests.browser.edge import Fetch, Nginx
from tests.browser.playhead import PlayheadServer
from tests.waiting import wait_for

pytestmark = pytest.mark.timed

SEGMENTS = 13
STOP_AFTER = 7
NETWORK_KBPS = 2500


@pytest.mark.timeout(90)
@pytest.mark.parametrize("player", ["dash", "hls"])
def test_a_player_fetches_what_playhead_says_and_plays_on_without_it(
    edge: Nginx, playhead: PlayheadServer, browser: Browser, player: str
) -> None:
    def stop_midway() -> None:
        wait_for(lambda: len(edge.segments()) >= STOP_AFTER, 45)
        playhead.stop()

    try:
        seen = browser.view(
            f"{edge.url}/page/{player}.html?title=title&segments={SEGMENTS}&session=s-{player}&rule",
            kbps=NETWORK_KBPS,
            meanwhile=stop_midway,
        )
    finally:
        playhead.stop()
        playhead.start()
    fetches = edge.segments()
    assert seen.fetched >= SEGMENTS, seen.told
    assert {fetch.status for fetch in fetches} <= {200, 304}, seen.told
    asked = edge.fetches("/v1/bitrate")
    answered = [fetch for fetch in asked if fetch.status == 200]
    gone = [fetch for fetch in asked if fetch.status == 502]
    assert len(answered) + len(gone) == len(asked)
    assert len(gone) >= 2, "Playhead was not asked after it had gone"

    assert all(answer["degraded"] == [] for answer in seen.answers), seen  # the policy decided, not the simple rule
    followed = obeyed(fetches, seen)
    assert followed >= STOP_AFTER - 3, seen
    assert seen.decisions["followed"] >= followed
    assert seen.decisions["failed"] >= len(gone) - 1, seen
    assert seen.stalls <= 1, seen
    assert seen.played_s > 5, seen


def obeyed(fetches: list[Fetch], seen: Viewing) -> int:
    """How many segments were fetched as Playhead said; every answer in time must be one of them.

    Of a segment that was fetched twice the first time counts: then a download was given up.
    """
    rungs = {fetch.segment - 1: fetch.rung for fetch in reversed(fetches) if fetch.segment}
    told = {answer["index"]: answer["rung"] for answer in seen.answers if answer["index"] in rungs}
    assert {index: rungs[index] for index in told} == told, seen
    return len(told)
