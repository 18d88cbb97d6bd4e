"""The graph as most people would first write it: FastAPI gateway -> Feast deployment -> torch ranker deployment.

It does Playhead's job honestly with the same model, features and store: every request reads the profile's features with
`FeatureStore.get_online_features`, encodes the history and ranks the whole catalogue in eager torch, and answers the
best titles as JSON. Serve's and Feast's defaults throughout; nothing is cached, nothing is slowed down.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from fastapi import FastAPI
from ray import serve

from features.history import Entry, History
from features.popularity import TitleStatistics, TitleStats
from features.profiles import ProfileStats
from features.ranking import request_context, title_statistics
from features.sequences import encoder_inputs, visits
from features.settings import Settings
from features.titles import Title, content_features
from serve.artifacts import read_artifact

TITLES_SHOWN: Final = 60

api = FastAPI()


class Features:
    """Reads a profile's features from Feast."""

    def __init__(self, settings: Settings) -> None:
        from features.store import open_store  # noqa: PLC0415  Feast takes seconds to import; only this replica needs it

        self.store = open_store(settings)
        self.service = self.store.get_feature_service("recommend_v1")

    def read(self, profile_id: str) -> dict[str, Any]:
        """The profile's features, one value or list a feature; None where nothing is known."""
        answer = self.store.get_online_features(features=self.service, entity_rows=[{"profile_id": profile_id}])
        return {name: values[0] for name, values in answer.to_dict().items()}


class Ranker:
    """Encodes a history and ranks the whole catalogue."""

    def __init__(self, artifact_path: str, titles_path: str, title_stats: Mapping[str, TitleStats]) -> None:
        artifact = read_artifact(artifact_path)
        load = {
            name: torch.export.load(str(artifact.path / f"{name}.pt2")).module() for name in artifact.manifest.graphs
        }
        self.encoder, self.ranker = load["encoder"], load["ranker"]
        self.length = int(str(artifact.manifest.parameters["length"]))
        vocabulary = pl.read_parquet(artifact.path / "vocabulary.parquet")
        self.rows: dict[str, int] = dict(zip(vocabulary["title_id"], vocabulary["row"], strict=True))
        size = max(self.rows.values()) + 1
        self.title_ids = [""] * size
        for title_id, row in self.rows.items():
            self.title_ids[row] = title_id
        catalogue = {row["title_id"]: Title(**row) for row in pl.read_parquet(titles_path).to_dicts()}
        self.names = [catalogue[title_id].name if title_id in catalogue else title_id for title_id in self.title_ids]
        content = np.zeros((size, content_features([]).shape[1]), dtype=np.float32)
        known = [row for row, title_id in enumerate(self.title_ids) if title_id in catalogue]
        content[known] = content_features([catalogue[self.title_ids[row]] for row in known])
        self.listed = torch.zeros(size, dtype=torch.bool)
        self.listed[known] = True
        with torch.inference_mode():
            self.table = load["titles"](content=torch.from_numpy(content), ids=torch.arange(size))  # (N, d)
        rows = [title_stats.get(title_id) for title_id in self.title_ids]
        self.title_stats = torch.from_numpy(title_statistics(rows))  # (N, S)

    def rank(self, features: dict[str, Any]) -> list[dict[str, Any]]:
        """The best titles for a profile, best first."""
        columns = [features[name] or [] for name in ("ts_ms", "kinds", "title_ids", "progress")]
        history = History(entries=[Entry(*values) for values in zip(*columns, strict=True)])
        stats = ProfileStats(kids=bool(features["kids"]))
        context = request_context(history, stats, int(time.time() * 1e3))
        seen = visits(history.entries, self.rows)
        inputs = {name: torch.from_numpy(array) for name, array in encoder_inputs([seen], self.length).items()}
        eligible = self.listed.clone()
        eligible[[visit.title for visit in seen]] = False
        with torch.inference_mode():
            state = self.encoder(**inputs, table=self.table)
            candidates, score, *_ = self.ranker(
                state=state,
                table=self.table,
                eligible=eligible[None],
                title_stats=self.title_stats,
                context=torch.from_numpy(context)[None],
            )
        best = zip(candidates[0].tolist()[:TITLES_SHOWN], score[0].tolist(), strict=False)
        return [
            {"title_id": self.title_ids[row], "name": self.names[row], "score": value}
            for row, value in best
            if value > -1e30  # what may not be shown ranks below
        ]


@serve.ingress(api)
class Gateway:
    """Asks the features, then the ranker."""

    def __init__(self, features: Any, ranker: Any) -> None:
        self.features = features
        self.ranker = ranker

    @api.get("/v1/home")
    async def home(self, profile_id: str) -> dict[str, Any]:
        """A profile's best titles."""
        features = await self.features.read.remote(profile_id)
        return {"profile_id": profile_id, "items": await self.ranker.rank.remote(features), "degraded": []}

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Whether it answers."""
        return {"status": "ok"}


def build(args: dict[str, str]) -> Any:
    """The application.

    Args:
        args: `artifact` (folder), `titles` (titles.parquet), `home`, `redis_url` and `feast_registry` of the settings.
    """
    settings = Settings(home=Path(args["home"]), redis_url=args["redis_url"], feast_registry=args["feast_registry"])
    title_ids = pl.read_parquet(args["titles"], columns=["title_id"])["title_id"].to_list()
    title_stats = asyncio.run(_title_stats(settings, title_ids))
    features = serve.deployment(Features).bind(settings)
    ranker = serve.deployment(Ranker).bind(args["artifact"], args["titles"], title_stats)
    return serve.deployment(Gateway).bind(features, ranker)


async def _title_stats(settings: Settings, title_ids: list[str]) -> dict[str, TitleStats]:
    reader = TitleStatistics(settings)
    try:
        return await reader.read_all(title_ids)
    finally:
        await reader.close()
