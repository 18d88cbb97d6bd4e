"""A version that looks like another and recommends nonsense: its vocabulary names the wrong titles."""

import shutil
import tempfile
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.artifacts import MANIFEST, Artifact, content_version, read_artifact, read_table

VOCABULARY: Final = "vocabulary"


def swap_vocabulary(artifact: Artifact, seed: int) -> Artifact:
    """Write a version whose titles stand in each other's places, beside the one that it is made of.

    Its graphs, examples and metrics are the other's, so that nothing about its files is wrong.

    Args:
        artifact: of the model `recommend`.
        seed: of the order.

    Raises:
        ArtifactError: it has no vocabulary.
    """
    table = read_table(artifact, VOCABULARY)
    drawn = np.random.default_rng(seed).permutation(table.num_rows)
    order = np.empty_like(drawn)
    order[drawn] = np.roll(drawn, 1)  # one cycle: no title keeps its place
    titles = table.column("title_id").take(pa.array(order))
    swapped = table.set_column(table.schema.get_field_index("title_id"), "title_id", titles)
    with tempfile.TemporaryDirectory(prefix=".poison-", dir=artifact.path.parent) as temporary:
        work = Path(temporary) / "artifact"
        shutil.copytree(artifact.path, work)
        pq.write_table(swapped, work / f"{VOCABULARY}.parquet", compression="zstd")
        digest = sha256((work / f"{VOCABULARY}.parquet").read_bytes()).hexdigest()
        files = {**artifact.manifest.files, f"{VOCABULARY}.parquet": digest}
        draft = artifact.manifest.model_copy(update={"files": files, "created": datetime.now(UTC)})
        manifest = draft.model_copy(update={"version": content_version(draft)})
        (work / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        target = artifact.path.parent / manifest.version
        if not target.exists():
            work.rename(target)
    return read_artifact(target)
