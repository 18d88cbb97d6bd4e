"""Stock players under content steering: two delivery networks, one fails, Playhead moves the player to the other."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from serve.arguments import Arguments
from serve.gateway.steering import OutagesInMemory
from serve.steering.clients import Client
from serve.steering.pathways import Pathways, read_pathways
from serve.steering.steerer import Steerer
from tests.browser import playhead as playhead_module
from tests.browser.conftest import Browser, Viewing
from tests.browser.edge import Fetch, Nginx, running_nginx
from tests.browser.playhead import PlayheadServer
from tests.browser.title import SEGMENT_S, Title
from tests.serve.conftest import make_title as make_catalogue_title
from tests.serve.gateway.conftest import write_titles
from tests.serve.steering.audience import outage
from tests.waiting import wait_for

pytestmark = pytest.mark.timed

CDNS = ("alpha", "beta")
TTL_S = 2
BUFFER_S = 6
UNTIL_S = 24
BREAK_AFTER = 5
SLACK_S = 3
"""Playhead looks at outages once a second, and a step of half the audience moves all of a pathway's clients."""

DAMPING = {"step_share": 0.5, "hold_s": 3, "ramp": [0.5, 1], "ramp_step_s": 1}
CONFIG = {
    "ttl_s": TTL_S,
    "outage_ttl_s": TTL_S,
    "pathways": [{"id": name} for name in CDNS],
    "damping": DAMPING,
}


class Steered:
    """A running Playhead that steers, and the outages that it is told."""

    def __init__(self, server: PlayheadServer, source: OutagesInMemory, config: Pathways) -> None:
        self.port = server.port
        self._source = source
        self._config = config

    def tell(self, *broken: str) -> None:
        """These networks have a confirmed outage now, and no others."""
        self._source.put([outage(cdn=name) for name in broken], time.time_ns() // 1_000_000)

    def session_of(self, pathway: str, protocol: str) -> str:
        """A session that belongs to a pathway while all is well."""
        steerer = Steerer(self._config)
        clients = (Client(session=f"viewing-{number}", context={"protocol": protocol}) for number in range(100))
        return next(client.session for client in clients if steerer.steer(client, 0).priority[0] == pathway)


@pytest.fixture
def steered(valkey_url: str, tmp_path: Path) -> Iterator[Steered]:
    """The real gateway behind a real HTTP server; a new one on an empty store, for both remember outages."""
    home = tmp_path / "home"
    write_titles(home, [make_catalogue_title(number) for number in range(1, 4)])
    path = home / "steering.json"
    path.write_text(json.dumps(CONFIG))
    source = OutagesInMemory()
    arguments = Arguments(dataset="small", home=home, redis_url=valkey_url, steering=path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playhead_module, "open_gateway", partial(playhead_module.open_gateway, outages=source))
        server = PlayheadServer(arguments)
        server.start()
        yield Steered(server, source, read_pathways(path))
        server.stop()


class Delivery:
    """Two delivery networks with the same title, and a site with the page and the manifests; each an nginx."""

    def __init__(self, folder: Path, root: Path, port: int) -> None:
        self._stops = {name: ExitStack() for name in (*CDNS, "site")}
        self._manifests = folder / "manifests"
        self._manifests.mkdir()
        site = folder / "root"
        site.mkdir()
        for name in ("page", "npm"):
            (site / name).symlink_to((root / name).resolve())
        (site / "manifests").symlink_to(self._manifests)
        self.cdns: dict[str, Nginx] = {
            name: self._stops[name].enter_context(running_nginx(folder / name, root, port)) for name in CDNS
        }
        self.site: Nginx = self._stops["site"].enter_context(running_nginx(folder / "site", site, port))

    def stop(self, name: str) -> None:
        """End a network."""
        self._stops[name].close()

    def close(self) -> None:
        """End all."""
        for stop in self._stops.values():
            stop.close()

    def media(self, name: str) -> list[Fetch]:
        """What a network was asked for of picture and sound: segments, and what starts rungs."""
        return [fetch for fetch in self.cdns[name].fetches("/title/") if fetch.rung is not None]

    def dash(self, title: Title, steering: str) -> str:
        """A manifest with both networks; its path."""
        urls = "".join(
            f'<BaseURL serviceLocation="{name}">{nginx.url}/title/</BaseURL>' for name, nginx in self.cdns.items()
        )
        element = f'<ContentSteering queryBeforeStart="true">{escape(steering)}</ContentSteering>'
        mark = "</ProgramInformation>"
        plain = (title.folder / "manifest.mpd").read_text()
        assert plain.count(mark) == 1
        (self._manifests / "manifest.mpd").write_text(plain.replace(mark, mark + urls + element))
        return "/manifests/manifest.mpd"

    def hls(self, title: Title, steering: str, first: str) -> str:
        """A multivariant playlist with both networks; its path."""
        head, *variants = (title.folder / "master.m3u8").read_text().split("#EXT-X-STREAM-INF:")
        version, sound = head.rsplit("#EXT-X-MEDIA:", 1)
        lines = [f'{version}#EXT-X-CONTENT-STEERING:SERVER-URI="{steering}",PATHWAY-ID="{first}"']
        for name, nginx in self.cdns.items():
            group = f'GROUP-ID="sound-{name}",STABLE-RENDITION-ID="sound"'
            own = sound.replace('GROUP-ID="group_A1"', group).replace('URI="', f'URI="{nginx.url}/title/').strip()
            lines.append(f"#EXT-X-MEDIA:{own}")
            for number, variant in enumerate(variants):
                about, uri = variant.split()
                about = about.replace('AUDIO="group_A1"', f'AUDIO="sound-{name}"')
                lines.append(f'#EXT-X-STREAM-INF:{about},PATHWAY-ID="{name}",STABLE-VARIANT-ID="v{number}"')
                lines.append(f"{nginx.url}/title/{uri}")
        (self._manifests / "master.m3u8").write_text("\n".join(lines) + "\n")
        return "/manifests/master.m3u8"


@pytest.fixture
def delivery(_needs_nginx: None, tmp_path: Path, root: Path, steered: Steered) -> Iterator[Delivery]:
    """The networks, running."""
    running = Delivery(tmp_path, root, steered.port)
    yield running
    running.close()


def view(
    delivery: Delivery,
    browser: Browser,
    path: str,
    player: str,
    meanwhile: Callable[[], None],
    until_s: int = UNTIL_S,
) -> Viewing:
    page = f"{delivery.site.url}/page/steering-{player}.html"
    return browser.view(f"{page}?manifest={path}&untilS={until_s}&bufferS={BUFFER_S}", kbps=4000, meanwhile=meanwhile)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("player", "failure"), [("dash", "stopped"), ("hls", "bad for others")])
def test_a_player_moves_to_the_other_network_within_a_ttl_and_plays_on(
    delivery: Delivery, steered: Steered, browser: Browser, title: Title, player: str, failure: str
) -> None:
    first, other = ("alpha", "beta") if failure == "stopped" else ("beta", "alpha")
    session = steered.session_of(first, player)
    steering = f"http://127.0.0.1:{steered.port}/v1/steering/{player}?sid={session}&region=eu"
    path = delivery.dash(title, steering) if player == "dash" else delivery.hls(title, steering, first)
    broken_s: list[float] = []

    def fail_midway() -> None:
        wait_for(lambda: len(delivery.cdns[first].segments()) >= BREAK_AFTER, 45)
        broken_s.append(time.time())
        steered.tell(first)
        if failure == "stopped":
            delivery.stop(first)

    steered.tell()
    seen = view(delivery, browser, path, player, fail_midway)

    assert seen.played_s >= UNTIL_S, seen
    assert seen.stalls <= 1, seen
    before = [fetch for fetch in delivery.media(other) if fetch.end_s < broken_s[0]]
    assert not before, "it was on both networks before"
    moved = [fetch for fetch in delivery.media(other) if fetch.segment is not None]
    assert len({fetch.uri for fetch in moved}) >= UNTIL_S // SEGMENT_S - BREAK_AFTER, moved
    assert {fetch.status for fetch in moved} <= {200, 206, 304}
    late = [fetch for fetch in delivery.media(first) if fetch.start_s > broken_s[0] + TTL_S + SLACK_S]
    assert not late, "it was still asked after a TTL"

    asked = [parse_qs(urlsplit(answer["url"]).query) for answer in seen.answers]
    assert len(asked) >= 4, seen
    assert {query["sid"][0] for query in asked} == {session}
    assert {query["home"][0] for query in asked[1:]} == {first}, "RELOAD-URI was not followed"
    on = [query[f"_{player.upper()}_pathway"][0].strip('"').split(",") for query in asked[1:]]
    assert on[0] == [first]
    assert on[-1][-1] == other
    assert seen.answers[0]["priority"] == [first, other]
    assert seen.answers[-1]["priority"] == [other, first]
    told_s = next(answer["atS"] for answer in seen.answers if answer["priority"][0] == other)
    assert told_s <= broken_s[0] + TTL_S + SLACK_S


@pytest.mark.timeout(120)
@pytest.mark.parametrize("player", ["dash", "hls"])
def test_after_recovery_a_player_comes_back(
    delivery: Delivery, steered: Steered, browser: Browser, title: Title, player: str
) -> None:
    session = steered.session_of("beta", player)
    steering = f"http://127.0.0.1:{steered.port}/v1/steering/{player}?sid={session}"
    path = delivery.dash(title, steering) if player == "dash" else delivery.hls(title, steering, "beta")
    moments_s: list[float] = []

    def break_and_mend() -> None:
        for broken, there, count in (((), "beta", BREAK_AFTER), (("beta",), "alpha", 2)):
            steered.tell(*broken)
            wait_for(lambda there=there, count=count: len(delivery.cdns[there].segments()) >= count, 25)  # type: ignore[misc]
            moments_s.append(time.time())
        steered.tell()

    seen = view(delivery, browser, path, player, break_and_mend, until_s=UNTIL_S + 6)
    assert seen.played_s >= UNTIL_S + 6, seen
    assert seen.stalls <= 1, seen
    _, mended_s = moments_s
    firsts = [answer["priority"][0] for answer in seen.answers]
    assert [one for one, before in pairwise([*firsts, ""]) if one != before] == ["beta", "alpha", "beta"], seen
    back_s = min(fetch.start_s for fetch in delivery.media("beta") if fetch.start_s > mended_s)
    assert back_s - mended_s >= DAMPING["hold_s"] - 1.5, (
        "it came back before the hold was over"
    )  # looked at once a second
    after = [fetch for fetch in delivery.media("alpha") if fetch.start_s > back_s + SEGMENT_S]
    assert not after, after
