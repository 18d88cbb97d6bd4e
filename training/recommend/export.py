"""The three graphs of a trained recommender as an artifact, with the contract that serving relies on.

Shapes: B batch, T time, N title rows (row 0 is padding), K candidates, d width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from features.ranking import CONTEXT_SIZE, STATISTICS_SIZE
from features.sequences import ACTION_BITS
from features.titles import CONTENT_SIZE
from serve.artifacts import Artifact, Lineage
from serve.tensors import GraphSpec, Ranking, TensorSpec
from training.export import ExportGraph, export_artifact
from training.recommend.model import Retrieval
from training.recommend.ranker import Ranker

NAME: Final = "recommend"
FEATURE_SERVICE: Final = "recommend_v1"  # features.definitions.RECOMMEND; importing it costs 7 s of Feast
MOST_TITLES: Final = 1_000_000
LARGEST_BATCH: Final = 64
_LATEST_S: Final = 4_102_444_800


def export_recommend(
    destination: Path,
    retrieval: Retrieval,
    ranker: Ranker,
    vocabulary: Sequence[str],
    *,
    metrics: Mapping[str, float],
    report: Mapping[str, Any],
    data_snapshot: str,
    seed: int,
    lineage: Lineage | None = None,
) -> Artifact:
    """Write `destination/<version>`.

    Args:
        destination: folder of the model's versions.
        retrieval: titles and encoder.
        ranker: the ranker.
        vocabulary: title ids; the title of row r is vocabulary[r - 1].
        metrics: what was measured.
        report: how the fits went.
        data_snapshot: names the training data.
        seed: the seed of the run.
        lineage: what the version comes from, besides.

    Raises:
        ArtifactError: a graph can't be exported, or an engine's answers are not torch's.
    """
    return export_artifact(
        destination,
        name=NAME,
        graphs=export_graphs(retrieval, ranker),
        tables={"vocabulary": vocabulary_table(vocabulary)},
        parameters={
            "length": retrieval.length,
            "candidates": ranker.config.candidates,
            "width": retrieval.config.vector_size,
            "finish_weight": ranker.config.finish_weight,
            "thumbs_up_weight": ranker.config.thumbs_up_weight,
            "trend_weight": ranker.config.trend_weight,
            "seed": seed,
            "training": dict(report),
        },
        metrics=dict(metrics),
        feature_service=FEATURE_SERVICE,
        data_snapshot=data_snapshot,
        lineage=lineage,
    )


def vocabulary_table(vocabulary: Sequence[str]) -> pa.Table:
    """Columns title_id (string) and row (int64, from 1)."""
    return pa.table(
        {
            "title_id": pa.array(list(vocabulary), pa.string()),
            "row": pa.array(range(1, len(vocabulary) + 1), pa.int64()),
        }
    )


def export_graphs(retrieval: Retrieval, ranker: Ranker) -> dict[str, ExportGraph]:
    """The graphs `titles`, `encoder` and `ranker` with realistic examples."""
    retrieval.eval()
    ranker.eval()
    specs = graph_specs(retrieval, ranker)
    examples = _examples(retrieval)
    modules = {"titles": retrieval.titles, "encoder": retrieval.encoder, "ranker": ranker}
    return {
        name: ExportGraph(module=module, example=examples[name], spec=specs[name]) for name, module in modules.items()
    }


def graph_specs(retrieval: Retrieval, ranker: Ranker) -> dict[str, GraphSpec]:
    """Inputs, outputs and limits of the three graphs."""
    width, candidates = retrieval.config.vector_size, ranker.config.candidates
    table = TensorSpec("table", "float32", ("N", width))
    ranked = ("score", "retrieval", "play", "finish", "thumbs_up")
    return {
        "titles": GraphSpec(
            inputs=(
                TensorSpec("content", "float32", ("N", CONTENT_SIZE)),
                TensorSpec("ids", "int64", ("N",), low=0, high=retrieval.config.vocabulary),
            ),
            outputs=(TensorSpec("vectors", "float32", ("N", width)),),
            limits={"N": (2, MOST_TITLES)},
        ),
        "encoder": GraphSpec(
            inputs=(
                TensorSpec("titles", "int64", ("B", "T"), low=0, indexes="N"),
                TensorSpec("actions", "int64", ("B", "T"), low=0, high=2**ACTION_BITS - 1),
                TensorSpec("times", "int64", ("B", "T"), low=0, high=_LATEST_S),
                table,
            ),
            outputs=(TensorSpec("state", "float32", ("B", width)),),
            limits={"B": (1, LARGEST_BATCH), "T": (1, retrieval.length), "N": (2, MOST_TITLES)},
        ),
        "ranker": GraphSpec(
            inputs=(
                TensorSpec("state", "float32", ("B", width)),
                table,
                TensorSpec("eligible", "bool", ("B", "N")),
                TensorSpec("title_stats", "float32", ("N", STATISTICS_SIZE)),
                TensorSpec("context", "float32", ("B", CONTEXT_SIZE)),
            ),
            outputs=(
                TensorSpec("candidates", "int64", ("B", candidates), indexes="N"),
                *(TensorSpec(name, "float32", ("B", candidates)) for name in ranked),
            ),
            limits={"B": (1, LARGEST_BATCH), "N": (candidates + 1, MOST_TITLES)},
            ranking=Ranking(items="candidates", score="score"),
        ),
    }


@torch.no_grad()
def _examples(retrieval: Retrieval) -> dict[str, dict[str, np.ndarray]]:
    """Four histories of different lengths over the vocabulary."""
    random = np.random.default_rng(0)
    table = retrieval.title_vectors().numpy()
    count, batch = table.shape[0], 3
    time = max(2, min(retrieval.length, 7))
    titles = random.integers(1, count, (batch, time))
    titles[1, time // 2 :] = 0  # a short history
    seen = titles > 0
    times = 1_700_000_000 + np.cumsum(random.integers(0, 90_000, (batch, time)), axis=1)
    encoder = {"titles": titles, "actions": seen * random.integers(1, 16, (batch, time)), "times": seen * times}
    state = retrieval.encoder(*(torch.from_numpy(array) for array in encoder.values()), torch.from_numpy(table)).numpy()
    eligible = np.ones((batch, count), dtype=np.bool_)
    np.put_along_axis(eligible, titles, values=False, axis=1)
    statistics = random.uniform(0, 1, (count, STATISTICS_SIZE)).astype(np.float32)
    context = random.uniform(-1, 1, (batch, CONTEXT_SIZE)).astype(np.float32)
    return {
        "titles": {"content": retrieval.content.numpy(), "ids": np.arange(count)},
        "encoder": encoder | {"table": table},
        "ranker": {
            "state": state, "table": table, "eligible": eligible, "title_stats": statistics, "context": context
        },
    }  # fmt: skip
