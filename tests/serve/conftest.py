"""A small recommend artifact, made by the real exporter, and a catalogue for it."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from features.ranking import CONTEXT_SIZE, STATISTICS_SIZE
from features.titles import CONTENT_SIZE, Title
from serve.artifacts import MANIFEST, content_version, read_artifact
from serve.tensors import GraphSpec, Ranking, TensorSpec
from training.export import ExportGraph, export_artifact

WIDTH = 16
CANDIDATES = 60
GENRES = ("Comedy", "Crime", "Drama", "Horror", "Romance")
NOW_MS = 1_767_225_600_000
DAY_MS = 86_400_000


class Titles(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary + 1, WIDTH)
        self.content = nn.Linear(CONTENT_SIZE, WIDTH, bias=False)

    def forward(self, content: Tensor, ids: Tensor) -> Tensor:
        return self.embedding(ids) * (ids > 0).unsqueeze(1) + 4 * self.content(content)


class Encoder(nn.Module):
    """Mean of the watched titles' vectors, later and better liked ones weighing more."""

    def forward(self, titles: Tensor, actions: Tensor, times: Tensor, table: Tensor) -> Tensor:
        seen = (titles > 0).to(torch.float32)  # (B, T)
        age = (times.max(dim=1, keepdim=True).values - times).to(torch.float32)
        weights = seen * (1 + actions.to(torch.float32) / 64) / (1 + age / 86_400)
        mixed = (table[titles] * weights.unsqueeze(2)).sum(dim=1)
        return mixed / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Linear(CONTEXT_SIZE, WIDTH)
        self.heads = nn.Linear(STATISTICS_SIZE + 1, 3)

    def forward(
        self, state: Tensor, table: Tensor, eligible: Tensor, title_stats: Tensor, context: Tensor
    ) -> tuple[Tensor, ...]:
        retrieval = (state + 0.1 * self.context(context)) @ table.T  # (B, N)
        retrieval = retrieval - 1e-5 * torch.arange(table.shape[0])  # of equals the earlier row, on every engine
        retrieval = torch.where(eligible, retrieval, -3e30)
        candidates = retrieval.topk(CANDIDATES, dim=1).indices
        score = retrieval.gather(1, candidates)
        known = title_stats[candidates]  # (B, K, S)
        chances = self.heads(torch.cat([known, score.clamp(-9, 9).unsqueeze(2)], dim=2)).sigmoid()
        return candidates, 2 * score, score, chances[..., 0], chances[..., 1], chances[..., 2]


def _specs() -> dict[str, GraphSpec]:
    def floats(name: str, *shape: str | int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=shape)

    ints = [TensorSpec(name=name, dtype="int64", shape=("B", "T"), low=0) for name in ("actions", "times")]
    watched = TensorSpec(name="titles", dtype="int64", shape=("B", "T"), indexes="N")
    outputs = [floats(name, "B", CANDIDATES) for name in ("score", "retrieval", "play", "finish", "thumbs_up")]
    batch, rows = (1, 4), (CANDIDATES + 1, 600)
    return {
        "titles": GraphSpec(
            inputs=(floats("content", "N", CONTENT_SIZE), TensorSpec(name="ids", dtype="int64", shape=("N",), low=0)),
            outputs=(floats("vectors", "N", WIDTH),),
            limits={"N": rows},
        ),
        "encoder": GraphSpec(
            inputs=(watched, *ints, floats("table", "N", WIDTH)),
            outputs=(floats("state", "B", WIDTH),),
            limits={"B": batch, "T": (1, 50), "N": rows},
        ),
        "ranker": GraphSpec(
            inputs=(
                floats("state", "B", WIDTH),
                floats("table", "N", WIDTH),
                TensorSpec(name="eligible", dtype="bool", shape=("B", "N")),
                floats("title_stats", "N", STATISTICS_SIZE),
                floats("context", "B", CONTEXT_SIZE),
            ),
            outputs=(TensorSpec(name="candidates", dtype="int64", shape=("B", CANDIDATES), indexes="N"), *outputs),
            limits={"B": batch, "N": rows},
            ranking=Ranking(items="candidates", score="score"),
        ),
    }


def republish(path: Path, metrics: dict[str, JsonValue]) -> Path:
    """The same model with other metrics, and so as another version, beside it."""
    manifest = read_artifact(path).manifest.model_copy(update={"metrics": metrics})
    manifest = manifest.model_copy(update={"version": content_version(manifest)})
    folder = path.with_name(manifest.version)
    shutil.copytree(path, folder)
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def export_small(destination: Path, title_ids: list[str]) -> Path:
    """Export a model of these titles with random weights, the same each time."""
    torch.manual_seed(1)
    numbers = np.random.default_rng(1)
    specs = _specs()
    count, visits = CANDIDATES + 20, 5
    table = numbers.standard_normal((count, WIDTH)).astype(np.float32)
    examples = {
        "titles": {
            "content": numbers.standard_normal((count, CONTENT_SIZE)).astype(np.float32),
            "ids": np.arange(count) % (len(title_ids) + 1),
        },
        "encoder": {
            "titles": numbers.integers(1, count, (3, visits)),
            "actions": numbers.integers(1, 64, (3, visits)),
            "times": numbers.integers(10**9, 10**9 + 10**6, (3, visits)),
            "table": table,
        },
        "ranker": {
            "state": numbers.standard_normal((3, WIDTH)).astype(np.float32),
            "table": table,
            "eligible": numbers.random((3, count)) < 0.9,
            "title_stats": numbers.random((count, STATISTICS_SIZE)).astype(np.float32),
            "context": numbers.random((3, CONTEXT_SIZE)).astype(np.float32),
        },
    }
    modules: dict[str, nn.Module] = {"titles": Titles(len(title_ids)), "encoder": Encoder(), "ranker": Ranker()}
    artifact = export_artifact(
        destination,
        name="recommend",
        graphs={
            name: ExportGraph(module=module, example=examples[name], spec=specs[name])
            for name, module in modules.items()
        },
        tables={"vocabulary": pa.table({"title_id": title_ids, "row": list(range(1, len(title_ids) + 1))})},
        parameters={"length": 50, "candidates": CANDIDATES, "width": WIDTH},
        metrics={},
    )
    return artifact.path


def make_title(number: int, **changes: object) -> Title:
    """Title number `number`; its genres, kids flag and region follow from the number."""
    fields: dict[str, object] = {
        "title_id": f"t{number}",
        "name": f'Title "{number}"',
        "year": 1950 + number % 70,
        "genres": tuple(dict.fromkeys((GENRES[number % 5], GENRES[number % 3]))),
        "kids": number % 4 == 0,
        "regions": (("se",) if number % 10 == 3 else ("us", "se") if number % 10 == 7 else ()),
        "added_ts": NOW_MS - 400 * DAY_MS - number * DAY_MS,
    }
    return Title.model_validate(fields | changes)


@pytest.fixture(scope="session")
def small_titles() -> list[Title]:
    """150 titles; the model knows all but the last 10."""
    return [make_title(number) for number in range(1, 151)]


@pytest.fixture(scope="session")
def small_artifacts(tmp_path_factory: pytest.TempPathFactory, small_titles: list[Title]) -> tuple[Path, Path]:
    """Folders of two versions of a small recommend model of the first 140 titles."""
    folder = tmp_path_factory.mktemp("recommend")
    first = export_small(folder, [title.title_id for title in small_titles[:140]])
    return first, republish(first, {"published": "again"})
