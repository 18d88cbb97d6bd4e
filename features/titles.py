"""A title's metadata and its content features: the same vector in training and at ingestion.

The features are hashed, so a title from any catalogue, with any genre, has a vector without a vocabulary.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from features.events import Identifier

GENRE_BUCKETS: Final = 48
WORD_BUCKETS: Final = 64
CONTENT_SIZE: Final = GENRE_BUCKETS + WORD_BUCKETS + 4
"""Length of a content vector: hashed genres, hashed title words, (year known, year, duration known, duration)."""


class Title(BaseModel):
    """One entry of the catalogue.

    Attributes:
        title_id: id.
        name: shown to viewers.
        year: release year; 0 unknown.
        genres: genre names, most telling first.
        duration_s: running time in seconds; 0 unknown.
        kids: whether kids profiles may see it.
        regions: where it may be shown; empty means everywhere.
        added_ts: UTC milliseconds when it entered the catalogue.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title_id: Identifier
    name: str = Field(min_length=1, max_length=512)
    year: int = Field(default=0, ge=0, le=2200)
    genres: tuple[str, ...] = ()
    duration_s: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    kids: bool = False
    regions: tuple[str, ...] = ()
    added_ts: int = Field(default=0, ge=0)


def _hashed(tokens: Iterable[str], buckets: int) -> NDArray[np.float32]:
    """Unit-length signed hashing of tokens (Weinberger et al. 2009, eq. 1)."""
    vector = np.zeros(buckets, dtype=np.float32)
    for token in tokens:
        code = zlib.crc32(token.casefold().encode())
        vector[code % buckets] += 1.0 if code & 0x80000000 else -1.0
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def content_features(titles: Sequence[Title]) -> NDArray[np.float32]:
    """Content vectors of titles, float32 (n, CONTENT_SIZE), each value within -1.5 to 1.5."""
    matrix = np.zeros((len(titles), CONTENT_SIZE), dtype=np.float32)
    for row, title in enumerate(titles):
        matrix[row, :GENRE_BUCKETS] = _hashed(title.genres, GENRE_BUCKETS)
        matrix[row, GENRE_BUCKETS : GENRE_BUCKETS + WORD_BUCKETS] = _hashed(title.name.split(), WORD_BUCKETS)
        if title.year:
            matrix[row, -4:-2] = 1.0, np.clip((title.year - 1990) / 40, -1.5, 1.5)
        if title.duration_s:
            matrix[row, -2:] = 1.0, np.clip(title.duration_s / 7200 - 0.75, -1.5, 1.5)
    return matrix
