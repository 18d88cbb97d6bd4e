"""A small world to gate models in: an audience, a champion fitted to its first weeks, and what is edited of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl

import training.export
from features.settings import Settings
from serve.artifacts import MANIFEST, Artifact, Lineage, Manifest, content_version, read_artifact
from training.datasets.dataset import Dataset, write_dataset
from training.datasets.synthetic import generate
from training.gates.answers import Reference
from training.gates.recommend import RecommendSettings, gate_recommend
from training.gates.starts import held_out
from training.gates.verdict import Verdict
from training.recommend.export import export_recommend
from training.recommend.pipeline import Trained, train
from training.recommend.train import FitSettings

DAY_MS = 24 * 3_600_000
QUICK = FitSettings(epochs=4, patience=4, warmup=10, batch=32)
SETTINGS = RecommendSettings(most_starts=320, least_starts=200, timed=24)
ENVIRONMENT = {"python": "3"}


@dataclass(frozen=True, kw_only=True)
class World:
    """What all tests of the module share."""

    folder: Path
    dataset: Dataset
    cut_ms: int
    trained: Trained
    champion: Artifact
    reference: Reference

    @property
    def before(self) -> pl.DataFrame:
        """Events before the cut."""
        return self.dataset.frame("events").filter(pl.col("ts") < self.cut_ms)

    def train(self, events: pl.DataFrame, settings: FitSettings = QUICK, seed: int = 0) -> Trained:
        return train(
            events, self.dataset.titles(), profiles=self.dataset.frame("profiles"), seed=seed, settings=settings
        )

    def gate(self, candidate: Artifact, **more: Any) -> Verdict:
        given = {"cut_ms": self.cut_ms, "settings": SETTINGS, "reference": self.reference} | more
        return gate_recommend(candidate, self.champion, self.dataset, **given)

    def export(self, trained: Trained, last_ts_ms: int) -> Artifact:
        return export(self.settings.models / "recommend", trained, last_ts_ms)

    @property
    def settings(self) -> Settings:
        """A home whose models these are."""
        return Settings(home=self.folder, redis_url="redis://127.0.0.1:1/0", feast_registry="")


def export(folder: Path, trained: Trained, last_ts_ms: int, **lineage: Any) -> Artifact:
    # the exporter repeats these few titles 4,096 / 121 times: which of equal ones are the last candidates is chance
    with mock.patch.object(training.export, "MAX_TRIAL_SIZE", 1):
        made = export_recommend(
            folder, trained.retrieval, trained.ranker, trained.vocabulary, metrics=trained.metrics,
            report=trained.report, data_snapshot="test", seed=0,
        )  # fmt: skip
    told = Lineage(dataset="world", last_ts_ms=last_ts_ms, rows=1, environment=ENVIRONMENT, **lineage)
    return edited(made, folder, lineage=told)


def edited(artifact: Artifact, folder: Path, files: dict[str, Callable[[bytes], bytes]] | None = None, **fields: Any):
    """The artifact with other files and manifest fields, as a consistent version of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / "edit"
    shutil.copytree(artifact.path, work)
    digests = dict(artifact.manifest.files)
    for name, edit in (files or {}).items():
        content = edit((work / name).read_bytes())
        (work / name).write_bytes(content)
        digests[name] = sha256(content).hexdigest()
    draft = Manifest.model_validate(
        json.loads(artifact.manifest.model_copy(update={"files": digests, **fields}).model_dump_json())
    )
    manifest = draft.model_copy(update={"version": content_version(draft)})
    (work / MANIFEST).write_text(manifest.model_dump_json())
    target = folder / manifest.version
    if target.exists():
        shutil.rmtree(target)
    work.rename(target)
    return read_artifact(target)


def make(folder: Path) -> World:
    audience = generate(profiles=150, titles=120, events=9_000, seed=5)
    dataset = write_dataset(
        folder / "data" / "world", source="test", events=audience.events, titles=audience.titles,
        profiles=audience.profiles,
    )  # fmt: skip
    cut_ms = dataset.last_ts_ms - 21 * DAY_MS
    before = audience.events.filter(pl.col("ts") < cut_ms)
    trained = train(before, dataset.titles(), profiles=dataset.frame("profiles"), settings=QUICK)
    champion = export(folder / "models" / "recommend", trained, int(before["ts"].max()))
    held = held_out(dataset, cut_ms, most=SETTINGS.most_starts, seed=0)
    return World(
        folder=folder, dataset=dataset, cut_ms=cut_ms, trained=trained, champion=champion,
        reference=Reference.of(champion.path, held),
    )  # fmt: skip
