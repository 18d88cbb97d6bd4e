"""Stock dash.js under CMSD: what the edge attaches is what bounds the rungs that it fetches, with no change to it."""

import pytest

from tests.browser.answers import answering
from tests.browser.conftest import Browser, OpenEdge
from tests.browser.edge import Fetch, Nginx
from tests.browser.title import AUDIO_KBPS, RUNGS_KBPS

pytestmark = pytest.mark.timed

SEGMENTS = 12
NETWORK_KBPS = 2500
PAGE = f"/page/dash.html?title=title&segments={SEGMENTS}"


def choices(fetches: list[Fetch]) -> list[tuple[int, int]]:
    """The rungs that were chosen under guidance, and the highest that it allowed, in order.

    The guidance is for picture and sound together. It came with the segment before, or with what was fetched to start
    another rung since. Guidance that even the lowest rung is above is none to dash.js. A viewing's first segment is
    left out: dash.js settles on its rung before it asks at all.
    """
    chosen = []
    guidance: list[int] = []
    started = False
    for fetch in fetches:
        assert fetch.rung is not None
        if fetch.segment is not None and not started:
            started, guidance = True, []
        elif fetch.segment is not None:
            allowed = sum(kbps + AUDIO_KBPS <= max(guidance, default=0) for kbps in RUNGS_KBPS)
            if allowed:
                chosen.append((fetch.rung, allowed - 1))
            guidance = []
        if fetch.mb_kbps is not None:
            guidance.append(fetch.mb_kbps)
    return chosen


@pytest.mark.timeout(90)
def test_dash_js_stays_below_the_suggested_bitrate_with_the_sound_s_taken_off(
    open_edge: OpenEdge, browser: Browser
) -> None:
    mb = RUNGS_KBPS[2] + AUDIO_KBPS
    with answering(200, {"CMSD-Dynamic": f'"playhead";etp=6000;mb={mb}'}) as server, open_edge(server.port) as nginx:
        seen = browser.view(f"{nginx.url}{PAGE}&cmsd&session=s1", kbps=6000)
        chosen = choices(nginx.video())
    assert seen.fetched >= SEGMENTS, seen.told
    assert len(chosen) >= SEGMENTS - 2
    assert max(rung for rung, _ in chosen) == 2, chosen  # as high as it may go: the network carries them all


@pytest.mark.timeout(150)
def test_playhead_guides_stock_dash_js_through_the_edge(edge: Nginx, browser: Browser) -> None:
    guided = browser.view(f"{edge.url}{PAGE}&cmsd&session=guided", kbps=NETWORK_KBPS)
    chosen = choices(edge.video())
    before = len(edge.video())
    alone = browser.view(f"{edge.url}{PAGE}&session=alone", kbps=NETWORK_KBPS)
    ignored = choices(edge.video()[before:])

    assert guided.fetched >= SEGMENTS, guided.told
    assert alone.fetched >= SEGMENTS, alone.told
    assert len(chosen) >= SEGMENTS // 2, "few segments came with guidance"
    assert all(rung <= allowed for rung, allowed in chosen), chosen
    assert len({allowed for _, allowed in chosen}) > 1, chosen  # the guidance moves with the session
    assert any(rung > allowed for rung, allowed in ignored), ignored  # by itself it would have chosen otherwise
