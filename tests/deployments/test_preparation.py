import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import polars as pl
import pytest

from deployments.candidates import train_and_settle
from deployments.inventory import model_versions
from deployments.jobs import evaluate_recommend, interactions_of_dataset
from deployments.preparation import (
    POLICY,
    has_champions,
    prepare_data,
    prepare_model,
    prepare_policy,
    registry_is_current,
)
from deployments.progress import Moment
from serve.artifacts import read_champion, set_champion
from serve.errors import ArtifactError
from tests.contracts.small_model import copy_of, small_artifact
from tests.serve.bitrate.small_policy import small_policy
from training.bitrate.rollouts import PlaySettings
from training.bitrate.train import FitSettings
from training.datasets.dataset import write_dataset
from training.recommend.interactions import read_interactions

RUN = """
import sys
from deployments.preparation import main
main()
print("feast" in sys.modules, file=sys.stderr)
"""


@pytest.fixture
def dataset(settings):
    """A tiny data set named `tiny`: 40 profiles that watch 12 titles, some more than others."""
    draw = random.Random(1)
    rows = [
        {
            "event_id": f"{profile}-{place}",
            "profile_id": f"p{profile}",
            "title_id": f"t{title}",
            "kind": "play",
            "ts": 1_700_000_000_000 + 60_000 * (100 * profile + place),
        }
        for profile in range(40)
        for place, title in enumerate(draw.sample(range(12), 6))
    ]
    titles = [{"title_id": f"t{title}", "name": f"Title {title}", "genres": ["Drama"]} for title in range(12)]
    return write_dataset(
        settings.datasets / "tiny", source="test", events=pl.DataFrame(rows), titles=pl.DataFrame(titles)
    )


@pytest.fixture
def champion(settings):
    artifact = small_artifact()
    path = copy_of(artifact, settings.models / "recommend")
    set_champion(settings.models, "recommend", artifact.version)
    return path


@pytest.fixture
def policy_champion(settings):
    path = shutil.copytree(small_policy(), settings.models / "bitrate" / small_policy().name)
    set_champion(settings.models, "bitrate", path.name)
    return path


def run_preparation(settings, name):
    environment = {**os.environ, "PLAYHEAD_HOME": str(settings.home), "REDIS_URL": settings.redis_url}
    done = subprocess.run(
        [sys.executable, "-c", RUN, name], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def done_texts(lines):
    return {line["phase"]: line["text"] for line in lines if line.get("moment") == "done"}


@pytest.mark.usefixtures("dataset", "champion", "policy_champion")
def test_what_is_there_is_not_made_again(settings):
    assert not registry_is_current(settings)
    first, lines = run_preparation(settings, "tiny")
    assert first.returncode == 0, first.stderr
    assert lines[-1] == {"data": "tiny"}
    assert done_texts(lines)["features"] == "registry applied; 40 profiles and 12 titles filled in"
    assert done_texts(lines)["policy"] == f"bitrate {small_policy().name}"
    assert has_champions(settings)
    assert registry_is_current(settings)
    second, lines = run_preparation(settings, "tiny")
    assert second.returncode == 0, second.stderr
    assert done_texts(lines)["features"] == "registry current; 0 profiles and 0 titles filled in"
    assert second.stderr.splitlines()[-1] == "False"  # Feast was not even imported: that takes seconds
    assert not registry_is_current(replace(settings, feast_registry=settings.feast_registry + ".other"))


@pytest.mark.usefixtures("dataset", "champion", "policy_champion")
@pytest.mark.parametrize("model", ["recommend", "bitrate"])
def test_a_damaged_champion_is_refused(settings, model):
    (read_champion(settings.models, model) / "manifest.json").write_text("{")
    done, lines = run_preparation(settings, "tiny")
    assert done.returncode == 1
    (error,) = [line["error"] for line in lines if "error" in line]
    assert set(error) == {"field", "got", "expected", "next_step"}
    assert "manifest" in error["field"]
    assert not any("data" in line for line in lines)
    (trouble,) = [entry.trouble for entry in model_versions(settings.models) if entry.name == model]
    assert "manifest" in trouble


def test_a_champion_of_other_data_is_kept_with_a_word(settings, dataset, champion, notices):
    prepare_model(dataset, settings, notices)
    (note,) = [notice for notice in notices.told if notice.moment is Moment.NOTE]
    assert "playhead train recommend --data tiny" in note.text
    assert read_champion(settings.models, "recommend") == champion


def test_a_model_is_trained_where_there_is_none_and_becomes_champion(settings, dataset, notices):
    assert prepare_data("tiny", settings, notices).snapshot == dataset.snapshot
    artifact, published = train_and_settle("recommend", settings, notices, dataset=dataset, tracked=False)
    assert published
    assert read_champion(settings.models, "recommend") == artifact.path
    (entry,) = model_versions(settings.models)
    assert (entry.name, entry.version, entry.champion) == ("recommend", artifact.version, True)
    assert (entry.data_snapshot, entry.trouble) == (dataset.snapshot, "")
    shares = [notice.share for notice in notices.told if notice.phase == "training" and notice.share is not None]
    assert shares
    assert all(0 <= share <= 1 for share in shares)
    told = len(notices.told)
    prepare_model(dataset, settings, notices)
    assert "training" not in {notice.phase for notice in notices.told[told:]}


def test_a_policy_is_trained_where_there_is_none_and_becomes_champion(settings, notices, monkeypatch, tmp_path):
    tiny = FitSettings(rounds=1, predictor_rounds=1, play=PlaySettings(steps=4), parts=1)
    monkeypatch.setattr("deployments.candidates.FitSettings", lambda: tiny)
    monkeypatch.setenv("PLAYHEAD_DATA", str(tmp_path / "none"))  # all is generated
    assert not has_champions(settings)
    prepare_policy(settings, notices)
    (entry,) = model_versions(settings.models)
    assert (entry.name, entry.champion, entry.trouble) == ("bitrate", True, "")
    assert entry.metrics["validation_robust_mpc_relative_qoe"]
    done = [notice.text for notice in notices.told if (notice.phase, notice.moment) == ("bitrate", Moment.DONE)]
    assert entry.version in done[0]
    told = len(notices.told)
    prepare_policy(settings, notices)
    assert {notice.phase for notice in notices.told[told:]} == {"policy"}


def test_the_policy_s_process_ends_with_the_one_that_started_it(settings, tmp_path):
    environment = {**os.environ, "PLAYHEAD_HOME": str(settings.home), "PLAYHEAD_DATA": str(tmp_path / "none")}
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.preparation", POLICY], env=environment, stdin=subprocess.PIPE
    )
    process.stdin.close()
    assert process.wait(60) == 1  # else it would train for minutes
    assert not has_champions(settings)


def test_evaluation_of_a_file(settings, dataset, notices, tmp_path):
    path = tmp_path / "visits.csv"
    frame = dataset.frame("events").select(user="profile_id", item="title_id", timestamp=pl.col("ts") // 1000)
    frame.head(48).write_csv(path)
    report = evaluate_recommend(str(path), [0], settings, notices)
    assert set(report["models"]) == {"playhead", "sasrec", "item_knn", "popularity"}
    assert set(report["models"]["playhead"]["hr@10"]) == {"mean", "std"}
    assert report["data"]["users"] == 8
    assert {notice.phase for notice in notices.told} == {"evaluation"}


def test_a_data_set_and_a_file_of_it_hold_the_same_visits(dataset, tmp_path):
    path = tmp_path / "visits.csv"
    frame = dataset.frame("events").select(user="profile_id", item="title_id", timestamp=pl.col("ts") // 1000)
    frame.write_csv(path)
    of_set, of_file = interactions_of_dataset(dataset), read_interactions(path)
    for one in (of_set, of_file):
        assert len(one) == 40
    visits = [
        {
            user: [(one.titles[row - 1], time) for row, time in zip(one.rows[a:b], one.times[a:b], strict=True)]
            for user, a, b in zip(one.users, one.offsets[:-1], one.offsets[1:], strict=True)
        }
        for one in (of_set, of_file)
    ]
    assert visits[0] == visits[1]


def test_a_pointer_to_no_version_is_refused_by_its_file(settings, dataset, notices):
    (settings.models / "recommend").mkdir(parents=True)
    (settings.models / "recommend" / "champion").write_text("../../etc\n")
    with pytest.raises(ArtifactError, match="recommend/champion"):
        prepare_model(dataset, settings, notices)
