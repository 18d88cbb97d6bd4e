"""Warm start: a new model takes the weights of one that was trained before, title by title.

A version's graphs are its weights too: `titles`, `encoder` and `ranker` hold the state of the modules that they were
exported from. Titles are matched by id. A title that the parent did not know starts where serving puts it until then:
on the embedding that all unknown titles share, which training keeps useful (EncoderConfig.id_dropout).

Shapes: V titles of the new vocabulary, W of the parent's, d width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from torch import Tensor

from serve.artifacts import Artifact, read_table
from serve.engines.torch import load_program
from serve.errors import ArtifactError, InvalidInput
from training.recommend.model import Retrieval
from training.recommend.train import FitSettings

EPOCHS_SHARE = 0.25
"""Of the epochs that a cold fit may take."""

RATE_SHARE = 0.25
"""Of a cold fit's learning rate: what the parent knows is to be kept."""

PATIENCE = 2


class UnfitParent(InvalidInput):
    """A version whose weights this code can't start from: of another architecture, or without the files for it."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """What a new model takes over.

    Attributes:
        version: the parent's.
        length: the most visits that its encoder takes.
        vocabulary: its title ids; the title of row r is vocabulary[r - 1].
        titles: state of its TitleTable.
        encoder: state of its SequenceEncoder.
    """

    version: str
    length: int
    vocabulary: tuple[str, ...]
    titles: Mapping[str, Tensor]
    encoder: Mapping[str, Tensor]


def read_parent(artifact: Artifact) -> Parent:
    """The weights of a version of the recommendation model.

    Raises:
        InvalidInput: it is a version of another model.
        UnfitParent: a file is missing, damaged, or not what this code reads.
    """
    if artifact.manifest.name != "recommend":
        raise InvalidInput(
            field="parent", got=f"{artifact.manifest.name} {artifact.version}", expected="a version of recommend",
            next_step="Start from a version of the same model, or cold.",
        )  # fmt: skip
    states = {}
    try:
        for graph in ("titles", "encoder"):
            relative = f"{graph}.pt2"
            program = load_program(artifact.read_bytes(relative), field=f"files.{relative}")
            states[graph] = {name: value.detach().clone() for name, value in program.state_dict.items()}
        vocabulary = read_table(artifact, "vocabulary").sort_by("row").column("title_id").to_pylist()
    except (ArtifactError, KeyError, pa.ArrowInvalid) as error:
        raise _unfit(artifact.version, str(error)) from error
    length = artifact.manifest.parameters.get("length")
    if not isinstance(length, int):
        raise _unfit(artifact.version, f"parameters.length is {length!r}")
    return Parent(
        version=artifact.version, length=length, vocabulary=tuple(vocabulary), titles=states["titles"],
        encoder=states["encoder"],
    )  # fmt: skip


def _unfit(version: str, got: str) -> UnfitParent:
    return UnfitParent(
        field="parent", got=f"version {version}: {got}", expected="weights of this code's encoder",
        next_step="Start cold: train without --warm.",
    )  # fmt: skip


def take_over(model: Retrieval, vocabulary: Sequence[str], parent: Parent) -> int:
    """Give a fresh model the parent's weights, in place.

    Args:
        model: of the parent's length.
        vocabulary: V title ids of the new model; the title of row r is vocabulary[r - 1].
        parent: where the weights come from.

    Returns:
        How many titles the parent knew.

    Raises:
        UnfitParent: the parent has another architecture; the model is as it was.
    """
    known = {title_id: row for row, title_id in enumerate(parent.vocabulary, start=1)}
    state = model.encoder.state_dict() | model.titles.state_dict()
    own = {name: tuple(value.shape) for name, value in state.items()}
    own["embedding.weight"] = (len(known) + 1, model.config.vector_size)
    theirs = {name: tuple(value.shape) for name, value in {**parent.encoder, **parent.titles}.items()}
    if own != theirs:
        raise _unfit(parent.version, "another architecture")
    rows = torch.tensor([0, *(known.get(title_id, 0) for title_id in vocabulary)])  # 0: shared by unknown titles
    with torch.no_grad():
        model.titles.embedding.weight.copy_(parent.titles["embedding.weight"][rows])
        model.titles.content.weight.copy_(parent.titles["content.weight"])
    model.encoder.load_state_dict(dict(parent.encoder))
    return int((rows[1:] > 0).sum())


def warm_settings(settings: FitSettings) -> FitSettings:
    """A cold fit's settings, made to keep what the parent knows and to end early."""
    return replace(
        settings,
        epochs=max(1, round(settings.epochs * EPOCHS_SHARE)),
        patience=min(settings.patience, PATIENCE),
        learning_rate=settings.learning_rate * RATE_SHARE,
    )
