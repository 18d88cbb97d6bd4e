import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from deployments.cli import app
from serve.artifacts import set_champion
from serve.bitrate.observations import RUNGS, SHAPES
from serve.errors import InvalidInput, NotFound
from serve.tensors import GraphSpec, TensorSpec
from training.bitrate import evaluate as evaluation
from training.bitrate.comparison import Request, compare
from training.bitrate.evaluate import ModelPolicy, evaluate, play
from training.bitrate.optimum import Optimum
from training.bitrate.published import Replay, published, read_log
from training.bitrate.qoe import LINEAR, PERCEPTUAL
from training.bitrate.references import Bba, Mpc, Throughput
from training.bitrate.simulator import PENSIEVE, Sessions
from training.bitrate.synthetic import generate_traces, generate_videos
from training.bitrate.traces import read_traces
from training.bitrate.video import Video, read_video
from training.export import ExportGraph, export_artifact

LADDER = (300, 750, 1200, 1850, 2850, 4300)
LOGGED = {
    "ppo": 0.9859, "cmc": 0.9843, "rl": 0.9250, "mpc": 0.9245, "hyb": 0.8605, "quetra": 0.8495, "bola": 0.8177,
    "rb": 0.7103, "bb": 0.6392,
}  # fmt: skip


@pytest.fixture(scope="module")
def video():
    random = np.random.default_rng(4)
    ladder = np.array([400.0, 900, 1800, 3500])
    sizes = np.round(ladder * 250 * random.uniform(0.7, 1.3, (20, 1)))
    return Video("title", 2.0, ladder, sizes, np.sort(random.uniform(20, 99, (20, 4)), axis=1))


@pytest.fixture(scope="module")
def traces():
    return generate_traces(10, seed=8, span_s=60)


@pytest.fixture
def folders(tmp_path, traces, video):
    """The same on disk, in Pensieve's format, with logs of BBA beside them."""
    for folder in ("traces", "title/size", "title/vmaf", "logs/bb"):
        (tmp_path / folder).mkdir(parents=True)
    for trace in traces:
        rows = np.column_stack([trace.times_s, trace.kbps / 1000])
        np.savetxt(tmp_path / "traces" / trace.name, rows, fmt="%.17g")
    rest = np.full((1, 4), 1000.0)  # a title's last, shorter segment, which readers leave out
    for rung in range(4):
        np.savetxt(tmp_path / f"title/size/video_size_{rung}", np.append(video.segment_bytes[:, rung], rest[0, rung]))
        np.savetxt(tmp_path / f"title/vmaf/video{4 - rung}", np.append(video.vmaf[:, rung], 50.0))
    played = play(Bba(), Sessions(read_traces(tmp_path / "traces"), video))
    for i, trace in enumerate(read_traces(tmp_path / "traces")):
        rung = played.rung[:, i]
        zero = np.zeros(len(rung))
        columns = [zero, video.rungs_kbps[rung], zero, zero, video.segment_bytes[np.arange(20), rung]]
        columns += [played.delay_s[:, i] * 1000, played.reward[:, i]]
        np.savetxt(tmp_path / "logs/bb" / trace.name, np.column_stack(columns), fmt="%.17g")
    return tmp_path


class Cautious(torch.nn.Module):
    """Takes the highest rung below half of the newest sample; in the form of the policy graph."""

    def forward(
        self, throughput_kbps, download_s, buffer_s, max_buffer_s, segment_s, last_rung, last_quality, remaining,
        rungs_kbps, segment_bytes, quality, weights, prior_log_kbps, latency_s,
    ):  # fmt: skip
        others = (download_s, segment_bytes, quality, weights, prior_log_kbps, latency_s)
        others += (buffer_s, max_buffer_s, segment_s, last_rung, last_quality, remaining)
        nothing = sum(other.flatten(1).sum(1) if other.ndim > 1 else other for other in others) * 0
        fits = (rungs_kbps > 0) & (rungs_kbps <= throughput_kbps[:, -1:] / 2)
        ladder = torch.where(rungs_kbps > 0, -rungs_kbps, -1e9)
        return torch.where(fits, rungs_kbps, ladder) + nothing[:, None]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A champion, exported as a trained one is."""
    models = tmp_path_factory.mktemp("models")
    spec = GraphSpec(
        inputs=tuple(TensorSpec(name, "float32", ("B", *shape)) for name, shape in SHAPES.items()),
        outputs=(TensorSpec("scores", "float32", ("B", RUNGS)),),
        limits={"B": (1, 64)},
    )
    seen = Sessions(generate_traces(3, seed=1), generate_videos(3, seed=1)).observe()
    graph = ExportGraph(module=Cautious(), example=seen.as_inputs(), spec=spec)
    artifact = export_artifact(
        models / "bitrate", name="bitrate", graphs={"policy": graph}, tables={}, parameters={}, metrics={}
    )
    set_champion(models, "bitrate", artifact.version)
    return models, artifact


def asked(folders, **changes):
    request = Request(
        traces=folders / "traces", sizes=folders / "title/size", ladder_kbps=(400, 900, 1800, 3500), segment_s=2.0
    )
    return dataclasses.replace(request, **changes)


def test_a_session_is_worth_its_mean_from_the_second_segment_on(traces, video):
    played = play(Bba(), Sessions(traces, video))
    sessions = Sessions(traces, video)
    rewards, stalls, rungs = [], [], []
    for _ in range(20):
        outcome = sessions.step(Bba().choose(sessions.observe(), sessions))
        rewards.append(outcome.reward)
        stalls.append(outcome.rebuffer_s)
        rungs.append(outcome.rung)
    assert played.values == pytest.approx(np.array(rewards)[1:].mean(0))
    assert played.counted(played.rebuffer_s) == pytest.approx(np.array(stalls)[1:].sum(0))
    changes = [sum(a != b for a, b in itertools.pairwise(path)) for path in zip(*rungs, strict=True)]
    assert played.switches.tolist() == changes


def test_what_comes_after_the_end_of_a_shorter_session_counts_for_nothing(traces, video):
    short = dataclasses.replace(video, segment_bytes=video.segment_bytes[:7], vmaf=video.vmaf[:7])
    alone = play(Bba(), Sessions(traces[:1], short))
    beside = play(Bba(), Sessions(traces[:2], [short, video]))
    assert beside.segments.tolist() == [7, 20]
    for name in ("values", "switches"):
        assert getattr(beside, name)[0] == getattr(alone, name)[0]
    joined = evaluation.Played.joined([alone, play(Bba(), Sessions(traces[1:2], video))])
    for name in ("segments", "values", "switches"):
        assert getattr(joined, name).tolist() == getattr(beside, name).tolist()


def test_the_report_is_made_of_the_sessions(traces, video):
    told = []
    report, played = evaluate([Mpc(), Bba(), Optimum()], traces, video, progress=lambda *args: told.append(args[:3]))
    assert list(report["policies"]) == ["robust_mpc", "bba", "optimum"]
    for name, row in report["policies"].items():
        values = np.array([row["traces"][trace.name] for trace in traces])
        assert values.tolist() == played[name].values.tolist()
        assert row["mean"] == pytest.approx(values.mean())
        assert row["p5"] == pytest.approx(np.percentile(values, 5))
        assert row["rebuffer_s"] == pytest.approx(played[name].rebuffer_s[1:].sum(0).mean())
        assert row["switches"] == pytest.approx(played[name].switches.mean())
    difference = played["bba"].values - played["robust_mpc"].values
    assert report["paired"]["bba"]["robust_mpc"]["mean"] == pytest.approx(difference.mean())
    error = difference.std(ddof=1) / np.sqrt(len(traces))
    assert report["paired"]["bba"]["robust_mpc"]["standard_error"] == pytest.approx(error)
    assert "robust_mpc" not in report["paired"]
    assert report["policies"]["optimum"]["upper_bound"] >= report["policies"]["optimum"]["mean"] - 1e-9
    assert told[-1] == ("optimum", 10, 10)
    json.dumps(report, allow_nan=False)


def test_batches_change_nothing(traces, video, monkeypatch):
    whole, _ = evaluate([Throughput()], traces, video)
    monkeypatch.setattr(evaluation, "BATCH", 3)
    parts, _ = evaluate([Throughput()], traces, video)
    assert parts["policies"]["throughput"]["traces"] == whole["policies"]["throughput"]["traces"]


def test_policies_and_traces_need_names_of_their_own(traces, video):
    with pytest.raises(InvalidInput, match="policies"):
        evaluate([Bba(), Bba()], traces, video)
    with pytest.raises(InvalidInput, match="traces"):
        evaluate([Bba()], [*traces, traces[0]], video)
    with pytest.raises(InvalidInput, match="traces"):
        evaluate([Bba()], [], video)


def test_a_log_is_replayed_and_one_of_another_world_refused(folders, video):
    traces = read_traces(folders / "traces")
    replay = read_log("bb", folders / "logs/bb", traces, video)
    assert isinstance(replay, Replay)
    assert play(replay, Sessions(traces, video)).rung.tolist() == play(Bba(), Sessions(traces, video)).rung.tolist()
    with pytest.raises(InvalidInput, match="bytes"):
        read_log("bb", folders / "logs/bb", traces, dataclasses.replace(video, segment_bytes=video.segment_bytes + 1))
    with pytest.raises(InvalidInput, match="ms, as the simulator"):
        read_log("bb", folders / "logs/bb", traces, video, dataclasses.replace(PENSIEVE, rtt_s=0.2))
    short = dataclasses.replace(video, segment_bytes=video.segment_bytes[:5], vmaf=None)
    with pytest.raises(InvalidInput, match="segments"):
        read_log("bb", folders / "logs/bb", traces, short)
    (folders / "logs/bb" / traces[3].name).write_text("no numbers here at all\n")
    with pytest.raises(InvalidInput, match=traces[3].name):
        read_log("bb", folders / "logs/bb", traces, video)
    (folders / "logs/bb" / traces[3].name).unlink()
    with pytest.raises(NotFound, match=traces[3].name):
        read_log("bb", folders / "logs/bb", traces, video)
    replays, notes = published(folders / "logs", traces, video)
    assert replays == []
    assert traces[3].name in notes[0]


def test_all_policies_run_side_by_side(folders, model):
    report = compare(asked(folders), model[0])
    rows = report["policies"]
    assert list(rows) == [
        "playhead", "throughput", "bba", "bola", "mpc", "robust_mpc", "optimum", "published_bb",
    ]  # fmt: skip
    assert rows["published_bb"]["traces"] == rows["bba"]["traces"]
    assert all(rows["optimum"]["mean"] >= row["mean"] for row in rows.values())
    assert report["notes"] == []


def test_the_model_decides_as_its_graph_does(folders, model, video):
    models, artifact = model
    traces = read_traces(folders / "traces")
    sessions = Sessions(traces, video)
    sessions.step(np.ones(len(traces), int))
    seen = sessions.observe()
    half_kbps = seen.throughput_kbps[:, -1] / 2
    expected = [max(int((video.rungs_kbps <= kbps).sum()) - 1, 0) for kbps in half_kbps]
    assert len(set(expected)) > 1
    for version in (None, artifact.version, str(artifact.path)):
        assert ModelPolicy.load(models, version).choose(seen, sessions).tolist() == expected
    with pytest.raises(NotFound, match="champion"):
        ModelPolicy.load(folders)


def test_without_a_champion_all_means_all_others(folders):
    report = compare(asked(folders), folders / "models")
    assert "playhead" not in report["policies"]
    assert "no champion" in report["notes"][0]


def test_perceptual_qoe_is_counted_in_vmaf(folders, video):
    report = compare(asked(folders, qoe="perceptual", vmaf=folders / "title/vmaf", policies=["bba"]), folders)
    traces = read_traces(folders / "traces")
    values = play(Bba(), Sessions(traces, video, PERCEPTUAL)).values
    assert report["policies"]["bba"]["mean"] == pytest.approx(values.mean())


def test_generated_networks_need_no_files():
    report = compare(Request(family="3g", count=3, seed=1, policies=["bba"]), Path("none"))
    again = compare(Request(family="3g", count=3, seed=1, policies=["bba"]), Path("none"))
    assert report["policies"]["bba"]["traces"] == again["policies"]["bba"]["traces"]
    assert len(report["policies"]["bba"]["traces"]) == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"policies": ["bba", "fastest"]}, "--policy"),
        ({"policies": []}, "--policy"),
        ({"qoe": "perceptual"}, "--vmaf"),
        ({"qoe": "best"}, "qoe"),
        ({"ladder_kbps": (400, 900)}, "segment_bytes"),
        ({"format": "csv"}, "--format"),
        ({"family": "3g"}, "--family"),
        ({"traces": None}, "--traces"),
        ({"sizes": None}, "--sizes"),
        ({"max_buffer_s": float("nan")}, "max_buffer_s"),
        ({"segment_s": -1.0}, "segment_s"),
    ],
)
def test_a_wrong_request_is_refused_by_its_field_before_anything_runs(folders, changes, field, monkeypatch):
    monkeypatch.setattr("training.bitrate.comparison.evaluate", lambda *args, **kwargs: pytest.fail("it ran"))
    with pytest.raises(InvalidInput, match=field):
        compare(asked(folders, **changes), folders)


def test_logs_that_were_asked_for_must_fit(folders):
    shutil.move(folders / "logs", folders / "elsewhere")
    assert "published_bb" in compare(asked(folders, logs=folders / "elsewhere"), folders)["policies"]
    with pytest.raises(InvalidInput, match="--logs"):
        compare(asked(folders, logs=folders / "elsewhere", max_buffer_s=3.0), folders)


@pytest.fixture
def playhead(tmp_path):
    runner = CliRunner(env={"PLAYHEAD_HOME": str(tmp_path / "home"), "COLUMNS": "100"})
    return lambda *arguments: runner.invoke(app, ["eval", "bitrate", *map(str, arguments)])


def test_the_command_prints_a_table_or_one_json_object(folders, playhead):
    title = ("--traces", folders / "traces", "--sizes", folders / "title/size", "--segment-s", 2)
    title += ("--ladder-kbps", "400,900,1800,3500", "--policy", "robust_mpc,bba,published_bb")
    page = folders / "page.html"
    result = playhead(*title, "--plot", page, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert list(report["policies"]) == ["robust_mpc", "bba", "published_bb", "optimum"]
    assert {"mean", "p5", "rebuffer_s", "switches", "traces"} <= set(report["policies"]["bba"])
    assert report["plot"]["policy"] == "robust_mpc"
    assert report["plot"]["trace"] in page.read_text()
    shown = playhead(*title)
    assert shown.exit_code == 0
    for name, row in report["policies"].items():
        if name != "optimum":
            assert f"{row['mean']:.4f}" in next(line for line in shown.output.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("--traces", "nowhere", "--sizes", "title/size"), "nowhere"),
        (("--traces", "traces", "--sizes", "nowhere"), "nowhere"),
        (("--traces", "traces", "--sizes", "title/size", "--ladder-kbps", "1,x"), "--ladder-kbps"),
        (("--traces", "traces", "--sizes", "title/size", "--plot", "none/page.html"), "--plot"),
        (("--traces", "traces", "--sizes", "title/size", "--plot", "page.html", "--plot-trace", "x"), "--plot-trace"),
        (("--traces", "traces", "--sizes", "title/size", "--policy", "playhead"), "model"),
    ],
)
def test_the_command_fails_with_the_field_and_leaves_nothing(folders, playhead, monkeypatch, arguments, field):
    monkeypatch.chdir(folders)
    result = playhead(*arguments, "--json")
    assert result.exit_code == 1
    assert field in json.loads(result.stdout.splitlines()[-1])["error"]["field"]
    assert not (folders / "page.html").exists()


def test_the_published_logs_enter_with_their_published_means(abr_data):
    traces = read_traces(abr_data / "norway")
    video = read_video(abr_data / "envivio" / "size", ladder_kbps=LADDER)
    replays, notes = published(abr_data / "logs", traces, video)
    assert notes == []
    report, _ = evaluate(replays, traces, video, LINEAR)
    means = {name.removeprefix("published_"): row["mean"] for name, row in report["policies"].items()}
    assert means == pytest.approx(LOGGED, abs=6e-5)
    assert report["paired"]["published_ppo"]["published_cmc"]["mean"] == pytest.approx(0.9859 - 0.9843, abs=1e-4)


def test_envivio_gets_its_own_ladder(abr_data):
    request = Request(traces=abr_data / "norway", sizes=abr_data / "envivio" / "size", policies=["bba"])
    assert compare(request, abr_data)["setting"]["rungs_kbps"] == list(LADDER)
