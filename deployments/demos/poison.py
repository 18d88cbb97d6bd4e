"""A version that looks like another and recommends what its viewers like least: a sign is wrong in it."""

from typing import Final

import torch

from serve.artifacts import Artifact, read_table
from serve.engines.torch import load_program
from training.export import ExportGraph, export_artifact

ENCODER: Final = "encoder"
_PARQUET: Final = ".parquet"


def rank_backwards(artifact: Artifact) -> Artifact:
    """Write a version that ranks as another does, the last title first, beside it.

    The states of its encoder have the other sign, and a score is state . vector. Everything else is the other's, its
    metrics too; its files are whole, and its engines answer as its export does. So nothing but a gate or viewers tell.

    Args:
        artifact: of the model `recommend`.

    Raises:
        ArtifactError: it has no such graph.
    """
    artifact.graph(ENCODER)
    graphs = {}
    for graph, spec in artifact.manifest.graphs.items():
        relative = f"{graph}.pt2"
        module = load_program(artifact.read_bytes(relative), field=f"files.{relative}").module()
        if graph == ENCODER:
            _negate(module)
        example, _ = artifact.example(graph)
        graphs[graph] = ExportGraph(module=module, example=example, spec=spec)
    manifest = artifact.manifest
    tables = [file.removesuffix(_PARQUET) for file in manifest.files if file.endswith(_PARQUET)]
    return export_artifact(
        artifact.path.parent, name=manifest.name, graphs=graphs,
        tables={table: read_table(artifact, table) for table in tables}, parameters=manifest.parameters,
        metrics=manifest.metrics, feature_service=manifest.feature_service, data_snapshot=manifest.data_snapshot,
        lineage=manifest.lineage,
    )  # fmt: skip


def _negate(module: torch.fx.GraphModule) -> None:
    """Give what a graph of one output answers the other sign, in place."""
    *_, output = module.graph.nodes
    (answer,) = output.all_input_nodes
    with module.graph.inserting_before(output):
        output.replace_input_with(answer, module.graph.call_function(torch.neg, (answer,)))
    module.recompile()
