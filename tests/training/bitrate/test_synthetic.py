import time

import numpy as np
import pytest

from serve.errors import InvalidInput
from training.bitrate.synthetic import FAMILIES, generate_traces, generate_videos


def correlation(trace, lag):
    log = np.log(trace.kbps[1:] + 10)
    log -= log.mean()
    return (log[:-lag] * log[lag:]).mean() / (log * log).mean()


@pytest.fixture(scope="module")
def traces():
    drawn = generate_traces(1500, seed=1)
    return {
        family.name: [trace for trace in drawn if trace.name.startswith(family.name + "-")] for family in FAMILIES
    }  # fmt: skip


def test_same_seed_same_traces_and_titles():
    for generate in (generate_traces, generate_videos):
        one, same, other = generate(7, seed=3), generate(7, seed=3), generate(7, seed=4)
        assert [vars(a).keys() for a in one] == [vars(b).keys() for b in same]
        for a, b in zip(one, same, strict=True):
            for name, value in vars(a).items():
                np.testing.assert_array_equal(value, getattr(b, name))
        field = "kbps" if generate is generate_traces else "rungs_kbps"
        assert not all(np.array_equal(getattr(a, field), getattr(b, field)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_keeps_its_ranges(traces, family):
    drawn = traces[family.name]
    assert len(drawn) == 300
    means = np.array([trace.mean_kbps for trace in drawn])
    low, high = family.mean_kbps
    assert (means >= low * 0.999).all()
    assert (means <= high * 1.001).all()
    assert np.median(means) == pytest.approx(np.sqrt(low * high), rel=0.35)
    assert {float(trace.times_s[-1]) for trace in drawn} == {320.0}
    assert np.mean([correlation(trace, round(2 / family.step_s)) for trace in drawn]) > 0.3


def test_families_differ_as_networks_do(traces):
    spread = {
        name: np.median([trace.kbps[1:].std() / trace.mean_kbps for trace in drawn]) for name, drawn in traces.items()
    }  # fmt: skip
    assert spread["broadband"] < 0.2 < spread["3g"] < spread["5g"]
    deep = {name: np.mean([(t.kbps < t.mean_kbps / 20).mean() for t in drawn]) for name, drawn in traces.items()}
    assert deep["broadband"] < 0.001
    assert deep["3g"] > 0.01  # tunnels
    # HSDPA on the Norwegian routes: the correlation of ln(kbit/s) is 0.9 after 1 s, 0.5 after 8 s, gone after 40 s
    commute = [np.mean([correlation(trace, lag) for trace in traces["3g"]]) for lag in (1, 8, 40)]
    assert commute == pytest.approx([0.9, 0.45, 0.05], abs=0.12)


def test_titles_are_as_various_as_the_world():
    videos = generate_videos(400, seed=2)
    assert {len(video.rungs_kbps) for video in videos} == set(range(2, 13))
    assert min(video.segment_s for video in videos) == 1
    assert max(video.segment_s for video in videos) == 10
    for video in videos:
        ratio = video.segment_bytes.mean(0) / (video.rungs_kbps * video.segment_s * 125)
        assert (np.abs(ratio - 1) < 0.25).all()
        assert (np.diff(video.vmaf, axis=1) >= 0).all()
        assert 60 <= video.rungs_kbps[0] <= video.rungs_kbps[-1] <= 60_001
    tops = np.array([video.vmaf[:, -1].mean() for video in videos if video.rungs_kbps[-1] > 8000])
    assert np.median(tops) > 95  # quality saturates
    busy = [video for video in videos if (video.segment_bytes.std(0) / video.segment_bytes.mean(0)).mean() > 0.25]
    assert len(busy) > 40
    neighbours = [np.corrcoef(video.segment_bytes[:-1, 0], video.segment_bytes[1:, 0])[0, 1] for video in busy]
    assert np.mean(neighbours) > 0.2  # scenes last
    coupling = [np.corrcoef(video.segment_bytes[:, 0], video.vmaf[:, 0])[0, 1] for video in busy]
    assert np.mean(coupling) < 0  # what is hard to code is large and looks worse


def test_generator_is_fast():
    generate_traces(5, seed=0)
    begin = time.process_time()
    generate_traces(1000, seed=0)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 5, "families": ()}, {"count": 5, "span_s": 5}])
def test_nothing_to_draw_is_refused(arguments):
    with pytest.raises(InvalidInput):
        generate_traces(**arguments, seed=0)
