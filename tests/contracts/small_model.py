"""A small model with the three graphs of a recommender, exported once a test process; and ways to damage the artifact.

Shapes: B batch, T time, N title rows (row 0 = padding), D width, S title statistics, C context, K candidates.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from serve.artifacts import MANIFEST, Artifact, Manifest, content_version, read_artifact
from serve.tensors import Array, GraphSpec, Ranking, TensorSpec
from training.export import ExportGraph, export_artifact

D, S, C, K = 16, 3, 2, 20
CONTENT = 5
MAX_B, MAX_T, MAX_N = 16, 32, 3000


class Titles(nn.Module):
    """Content and id to title vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(40, D, padding_idx=0)
        self.content = nn.Linear(CONTENT, D)

    def forward(self, content: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.content(content) + self.ids(ids), dim=1)


class Encoder(nn.Module):
    """One causal attention layer; the state is that of the last visit that is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.actions = nn.Embedding(256, D)
        self.frequencies = nn.Parameter(torch.logspace(-6, -3, D))
        self.attention = nn.Linear(D, 3 * D)
        self.out = nn.Linear(D, D)

    def forward(
        self, titles: torch.Tensor, actions: torch.Tensor, times: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        batch, time = titles.shape
        age_s = (times - times[:, :1]).float().unsqueeze(-1)
        x = functional.embedding(titles, table) + self.actions(actions) + torch.sin(age_s * self.frequencies)
        query, key, value = self.attention(x).chunk(3, dim=-1)  # (B, T, D) each
        steps = torch.arange(time)
        seen = (steps[:, None] >= steps[None, :])[None] & (titles > 0)[:, None, :] | torch.eye(time, dtype=torch.bool)
        x = x + self.out(functional.scaled_dot_product_attention(query, key, value, attn_mask=seen))
        last = ((titles > 0).sum(1) - 1).clamp(min=0)
        return x.gather(1, last[:, None, None].expand(batch, 1, D)).squeeze(1)


class Ranker(nn.Module):
    """Exact retrieval, then a small network over the candidates."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * D + S + C, 32)
        self.objectives = nn.Linear(32, 3)

    def forward(
        self,
        state: torch.Tensor,
        table: torch.Tensor,
        eligible: torch.Tensor,
        title_stats: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        scores = torch.where(eligible, state @ table.T, -1e31)
        retrieval, candidates = scores.topk(K, dim=1)
        wide = (-1, K, -1)
        features = torch.cat(
            [
                functional.embedding(candidates, table),
                state[:, None].expand(*wide),
                functional.embedding(candidates, title_stats),
                context[:, None].expand(*wide),
            ],
            dim=-1,
        )
        objectives = torch.sigmoid(self.objectives(torch.relu(self.hidden(features))))
        score = torch.where(retrieval > -1e30, objectives.sum(-1), retrieval)
        score, order = score.topk(K, dim=1)  # a stable sort has no ONNX form
        play, finish, thumbs_up = (objectives[..., place].gather(1, order) for place in range(3))
        return candidates.gather(1, order), score, retrieval.gather(1, order), play, finish, thumbs_up


def specs() -> dict[str, GraphSpec]:
    """Specs of the three graphs."""
    table = TensorSpec("table", "float32", ("N", D))
    ranked = [TensorSpec(name, "float32", ("B", K)) for name in ("score", "retrieval", "play", "finish", "thumbs_up")]
    return {
        "titles": GraphSpec(
            inputs=(
                TensorSpec("content", "float32", ("N", CONTENT), low=-2, high=2),
                TensorSpec("ids", "int64", ("N",), low=0, high=39),
            ),
            outputs=(TensorSpec("vectors", "float32", ("N", D)),),
            limits={"N": (K + 1, MAX_N)},
        ),
        "encoder": GraphSpec(
            inputs=(
                TensorSpec("titles", "int64", ("B", "T"), indexes="N"),
                TensorSpec("actions", "int64", ("B", "T"), low=0, high=255),
                TensorSpec("times", "int64", ("B", "T")),
                table,
            ),
            outputs=(TensorSpec("state", "float32", ("B", D)),),
            limits={"B": (1, MAX_B), "T": (1, MAX_T), "N": (K + 1, MAX_N)},
        ),
        "ranker": GraphSpec(
            inputs=(
                TensorSpec("state", "float32", ("B", D)),
                table,
                TensorSpec("eligible", "bool", ("B", "N")),
                TensorSpec("title_stats", "float32", ("N", S), low=0),
                TensorSpec("context", "float32", ("B", C), low=-10, high=10),
            ),
            outputs=(TensorSpec("candidates", "int64", ("B", K)), *ranked),
            limits={"B": (1, MAX_B), "N": (K + 1, MAX_N)},
            ranking=Ranking("candidates", "score"),
        ),
    }


def example(graph: str, *, batch: int = 3, time: int = 7, titles: int = 50, seed: int = 0) -> dict[str, Array]:
    """Random valid inputs of a graph."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(titles, D)).astype(np.float32)
    table[0] = 0
    if graph == "titles":
        content = rng.uniform(-1, 1, (titles, CONTENT)).astype(np.float32)
        return {"content": content, "ids": rng.integers(0, 40, titles)}
    if graph == "encoder":
        return {
            "titles": rng.integers(1, titles, (batch, time)),
            "actions": rng.integers(0, 256, (batch, time)),
            "times": np.sort(rng.integers(0, 10**6, (batch, time)), axis=1) + 1_700_000_000,
            "table": table,
        }
    eligible = rng.random((batch, titles)) > 0.2
    eligible[:, 0] = False
    return {
        "state": rng.normal(size=(batch, D)).astype(np.float32),
        "table": table,
        "eligible": eligible,
        "title_stats": rng.random((titles, S)).astype(np.float32),
        "context": rng.normal(size=(batch, C)).astype(np.float32),
    }


def export(destination: Path, *, seed: int = 0, graphs: tuple[str, ...] = ("titles", "encoder", "ranker")) -> Artifact:
    """Export the small model to destination/<version>."""
    torch.manual_seed(seed)
    modules = {"titles": Titles(), "encoder": Encoder(), "ranker": Ranker()}
    return export_artifact(
        destination,
        name="small",
        graphs={name: ExportGraph(module=modules[name], example=example(name), spec=specs()[name]) for name in graphs},
        tables={"vocabulary": pa.table({"title_id": ["t1", "t2"], "row": [1, 2]})},
        parameters={"length": MAX_T, "candidates": K},
        metrics={"ndcg@10": 0.25},
        feature_service="recommend",
        data_snapshot="none",
    )


@functools.cache
def _exported() -> tuple[tempfile.TemporaryDirectory[str], Artifact]:
    folder = tempfile.TemporaryDirectory(prefix="playhead-small-model-")
    return folder, export(Path(folder.name))


def small_artifact() -> Artifact:
    """The exported small model, made once a process. Do not change it: take a `copy_of` it."""
    return _exported()[1]


def copy_of(artifact: Artifact, folder: Path) -> Path:
    """Copy an artifact to folder/<version>, to damage it."""
    return Path(shutil.copytree(artifact.path, folder / artifact.version))


def resealed(artifact: Artifact, folder: Path, change: Callable[[Path, Manifest], Manifest]) -> Path:
    """A changed artifact whose hashes and version are right again: what someone with a mistaken exporter writes."""
    path = copy_of(artifact, folder)
    manifest = change(path, artifact.manifest)
    files = {name: sha256((path / name).read_bytes()).hexdigest() for name in manifest.files}
    manifest = manifest.model_copy(update={"files": files})
    manifest = manifest.model_copy(update={"version": content_version(manifest)})
    (path / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return path.rename(folder / f"{manifest.version}")


def resealed_artifact(artifact: Artifact, folder: Path, change: Callable[[Path, Manifest], Manifest]) -> Artifact:
    """The same, read back."""
    return read_artifact(resealed(artifact, folder, change))
