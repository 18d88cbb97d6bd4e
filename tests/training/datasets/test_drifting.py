"""The report of Evidently: what differs is told, in a file that asks for nothing outside itself."""

import os
import re
import sys

import polars as pl
import pytest

from features.settings import Settings
from serve.artifacts import set_champion
from serve.errors import InvalidInput, NotFound, Unavailable
from tests.contracts.small_model import resealed_artifact, small_artifact
from tests.training.recommend import audience
from training.datasets.dataset import write_dataset
from training.datasets.drifting import drift_report, learned_from


def test_what_differs_is_told(tmp_path):
    before = audience.events(users=100)
    others = pl.when(pl.col("title_id").str.ends_with("1")).then(pl.col("title_id")).otherwise(pl.lit("t3"))
    after = before.with_columns(others.alias("title_id"))
    report = drift_report(before, after, audience.titles(), tmp_path / "deep" / "report.html")
    assert report["features"]["genre"] > 0.5
    assert report["features"]["visits"] < 0.1
    assert "genre" in report["drifted"]
    assert "device" not in report["features"], "nothing tells it"
    html = (tmp_path / "deep" / "report.html").read_text()
    assert "genre" in html
    assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]+"', html) == []
    assert os.environ["DO_NOT_TRACK"]


def test_the_data_of_a_champion_that_learned_from_a_part_of_it_is_found(tmp_path):
    settings = Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0", feast_registry="")
    titles = pl.DataFrame([title.model_dump() for title in audience.titles()])
    dataset = write_dataset(settings.datasets / "mine", source="a test", events=audience.events(), titles=titles)
    cut = {"data_snapshot": f"{dataset.snapshot}<1800000000000"}
    champion = resealed_artifact(
        small_artifact(), settings.models / "recommend", lambda _path, manifest: manifest.model_copy(update=cut)
    )
    set_champion(settings.models, "recommend", champion.version)
    assert learned_from(settings) == dataset


def test_too_little_and_what_is_not_there_is_said(tmp_path, monkeypatch):
    with pytest.raises(InvalidInput, match="plays"):
        drift_report(audience.events(), audience.events(users=2), audience.titles(), tmp_path / "r.html")
    with pytest.raises(NotFound, match="champion"):
        learned_from(Settings(home=tmp_path, redis_url="", feast_registry=""))
    monkeypatch.setitem(sys.modules, "evidently", None)
    with pytest.raises(Unavailable) as raised:
        drift_report(audience.events(), audience.events(), audience.titles(), tmp_path / "r.html")
    assert "playhead[reports]" in raised.value.next_step
