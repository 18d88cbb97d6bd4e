import re
from html.parser import HTMLParser

import numpy as np
import pytest

from training.bitrate.evaluate import play
from training.bitrate.optimum import Optimum
from training.bitrate.plot import render
from training.bitrate.references import Bba, Mpc
from training.bitrate.simulator import PENSIEVE, Sessions
from training.bitrate.traces import Trace
from training.bitrate.video import Video

OPEN = {"meta", "br", "line", "polyline"}


class Reader(HTMLParser):
    """The page as a browser takes it: elements closed in order, and what stands in them."""

    def __init__(self, page):
        super().__init__()
        self.depth, self.found, self.text, self.charts = [], [], [], []
        self.feed(page)
        self.close()
        assert self.depth == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "svg":
            self.charts.append([])
        if self.charts:
            self.charts[-1].append((tag, dict(attrs)))
        if tag not in OPEN:
            self.depth.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if self.charts:
            self.charts[-1].append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.depth.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def drawn():
    """After the start BBA runs dry twice: the network all but stops for half a minute, and later again."""
    times_s = np.arange(0, 181.0)
    kbps = np.where((times_s % 60 > 15) & (times_s % 60 < 50), 50.0, 3000.0)
    trace = Trace("<tunnel> & hill", times_s, kbps)
    ladder = np.array([300.0, 1000, 3000])
    video = Video("title", 4.0, ladder, np.tile(ladder * 500, (25, 1)))
    played = {policy.name: play(policy, Sessions([trace], video)) for policy in (Bba(), Optimum())}
    return trace, video, played, render(trace, video, PENSIEVE, 0, played)


def curves(chart):
    """Class of each curve and its points."""
    lines = [attrs for tag, attrs in chart if tag == "polyline"]
    return [(attrs["class"], np.array([pair.split(",") for pair in attrs["points"].split()], float)) for attrs in lines]


def test_the_page_is_whole_and_needs_nothing_else(drawn):
    trace, _, _, page = drawn
    reader = Reader(page)
    tags = {tag for tag, _ in reader.found}
    assert not tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?://|url\(|@import", page)
    assert trace.name in reader.text
    assert "<tunnel>" not in page


def test_axes_carry_units_and_curves_stay_inside(drawn):
    reader = Reader(drawn[3])
    assert len(reader.charts) == 3
    assert reader.text.count("time, s") == 3
    assert reader.text.count("Mbit/s") >= 2
    for chart in reader.charts:
        width, height = map(float, chart[0][1]["viewbox"].split()[2:])
        for _, line in curves(chart):
            assert np.isfinite(line).all()
            assert (line >= 0).all()
            assert (line <= [width, height]).all()
            assert (np.diff(line[:, 0]) >= -1e-9).all()


def test_each_stall_is_shaded_in_each_chart(drawn):
    *_, played, page = drawn
    stalls = int((played["bba"].rebuffer_s[:, 0] > 0).sum())
    assert stalls >= 3
    for chart in Reader(page).charts:
        assert len([1 for tag, attrs in chart if tag == "rect" and attrs["class"] == "stall"]) == stalls


def test_rungs_and_buffer_show_the_policy_and_the_optimum(drawn):
    _, _, played, page = drawn
    reader = Reader(page)
    _, rungs, buffer = reader.charts
    for chart in (rungs, buffer):
        assert [name for name, _ in curves(chart)] == ["curve b", "curve a"]
    chosen = dict(curves(rungs))["curve a"]
    assert len(np.unique(chosen[:, 1])) == len(np.unique(played["bba"].rung))
    for one in played.values():
        assert f"{one.values[0]:.4f}" in page


def test_the_buffer_is_empty_while_playback_stalls(drawn):
    buffer = Reader(drawn[3]).charts[2]
    stall = [attrs for tag, attrs in buffer if tag == "rect"][-1]
    line = dict(curves(buffer))["curve a"]
    begin, end = float(stall["x"]), float(stall["x"]) + float(stall["width"])
    during = line[(line[:, 0] >= begin - 0.2) & (line[:, 0] <= begin + 0.2)]
    assert during[:, 1].max() == line[:, 1].max()  # y grows downwards: the axis
    assert end > begin


def test_a_policy_alone_and_a_network_without_limits_are_drawn(drawn):
    trace, video, _, _ = drawn
    fast = Trace("fast", np.array([0.0, 1.5, 2.0]), np.array([0.0, 900_000.0, 400_000.0]))
    for one in (fast, trace):
        played = {"mpc": play(Mpc(robust=False), Sessions([one], video))}
        assert len(Reader(render(one, video, PENSIEVE, 0, played)).charts) == 3
