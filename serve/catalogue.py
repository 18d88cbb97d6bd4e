"""The catalogue in memory: every title at a row of arrays, immutable, replaced as a whole when it changes.

Shapes: N rows (row 0 is padding; the model's vocabulary from 1; titles that it does not know after it), G genres.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from features.titles import CONTENT_SIZE, Title, content_features
from serve.errors import InvalidInput

_COLUMNS: Final = tuple(Title.model_fields)


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """All titles that can be spoken of, in the row order of one model.

    Attributes:
        title_ids: N ids; empty for row 0.
        names: N names; empty for titles that only the model knows.
        rows: title_id -> row.
        fragments: N parts `},{...` of JSON that end the title before and open this one, up to where its rank follows.
        content: float32 (N, CONTENT_SIZE); zeros for titles that only the model knows.
        embedded: int64 (N,), input `ids` of the model's title graph: the row itself, 0 beyond the vocabulary.
        listed: bool (N,), which rows are in the catalogue now; only these may be shown.
        for_kids: bool (N,).
        added_ts: int64 (N,), UTC milliseconds; 0 unknown.
        genres: G genre names, sorted.
        members: bool (G, N), which titles are of which genre.
        rarity: float32 (G,), log(titles / titles of the genre): how telling a genre is.
    """

    title_ids: tuple[str, ...]
    names: tuple[str, ...]
    rows: Mapping[str, int]
    fragments: tuple[bytes, ...]
    content: NDArray[np.float32]
    embedded: NDArray[np.int64]
    listed: NDArray[np.bool_]
    for_kids: NDArray[np.bool_]
    added_ts: NDArray[np.int64]
    genres: tuple[str, ...]
    members: NDArray[np.bool_]
    rarity: NDArray[np.float32]
    _everywhere: NDArray[np.bool_] = field(repr=False)
    _regional: Mapping[str, NDArray[np.bool_]] = field(repr=False)

    @classmethod
    def build(cls, titles: Iterable[Title], vocabulary: Mapping[str, int] | None = None) -> Self:
        """Lay titles out in rows.

        Args:
            titles: the catalogue; of titles with one id the last counts.
            vocabulary: title_id -> row of the model's table, rows 1 to V; None without a model.
        """
        by_id = {title.title_id: title for title in titles}
        listed = sorted(by_id.values(), key=lambda title: (title.added_ts, title.title_id))
        count = 1 + len(listed)
        content = np.zeros((count, CONTENT_SIZE), dtype=np.float32)
        content[1:] = content_features(listed)
        genres = sorted({genre for title in listed for genre in title.genres})
        members = _marked(genres, (title.genres for title in listed), count)
        regions = sorted({region for title in listed for region in title.regions})
        plain = cls(
            title_ids=("", *(title.title_id for title in listed)),
            names=("", *(title.name for title in listed)),
            rows={title.title_id: row for row, title in enumerate(listed, 1)},
            fragments=(b"", *map(_opening, listed)),
            content=content,
            embedded=np.zeros(count, dtype=np.int64),
            listed=np.array([False, *[True] * len(listed)]),
            for_kids=np.array([False, *(title.kids for title in listed)]),
            added_ts=np.array([0, *(title.added_ts for title in listed)], dtype=np.int64),
            genres=tuple(genres),
            members=members,
            rarity=np.log(len(listed) / np.maximum(members.sum(axis=1), 1)).astype(np.float32),
            _everywhere=np.array([False, *(not title.regions for title in listed)]),
            _regional=dict(
                zip(regions, _marked(regions, (title.regions for title in listed), count), strict=True),
            ),
        )
        return plain.laid_out(vocabulary) if vocabulary else plain

    def laid_out(self, vocabulary: Mapping[str, int]) -> Self:
        """The same titles in the rows of a model; takes a tenth of the time of building them.

        Args:
            vocabulary: title_id -> row of the model's table, rows 1 to V.
        """
        size = max(vocabulary.values(), default=0) + 1
        unknown = sorted(
            (title_id for title_id in self.rows if title_id not in vocabulary),
            key=lambda title_id: (self.added_ts[self.rows[title_id]], title_id),
        )
        rows = dict(vocabulary) | {title_id: size + place for place, title_id in enumerate(unknown)}
        title_ids = [""] * (size + len(unknown))
        for title_id, row in rows.items():
            title_ids[row] = title_id
        sources = [self.rows.get(title_id, 0) for title_id in title_ids]  # row 0 has nothing
        source = np.array(sources, dtype=np.int64)
        embedded = np.zeros(len(source), dtype=np.int64)
        embedded[:size] = np.arange(size)
        return replace(
            self,
            title_ids=tuple(title_ids),
            names=tuple([self.names[row] for row in sources]),
            rows=rows,
            fragments=tuple([self.fragments[row] for row in sources]),
            content=self.content[source],
            embedded=embedded,
            listed=self.listed[source],
            for_kids=self.for_kids[source],
            added_ts=self.added_ts[source],
            members=np.take(self.members, source, axis=1),  # a genre's row stays in one piece
            _everywhere=self._everywhere[source],
            _regional={region: mask[source] for region, mask in self._regional.items()},
        )

    def __len__(self) -> int:
        """How many titles may be shown somewhere."""
        return int(np.count_nonzero(self.listed))

    def known_region(self, region: str) -> str:
        """The region itself where any title names it, else empty: all such regions see the same titles."""
        return region if region in self._regional else ""

    def available(self, region: str, *, kids: bool) -> NDArray[np.bool_]:
        """Which titles may be shown, bool (N,).

        Args:
            region: where the player is; one that no title names, or none, sees what may be shown everywhere.
            kids: whether only titles for kids may be shown.
        """
        mask = self._everywhere
        if region in self._regional:
            mask = mask | self._regional[region]
        return mask & self.for_kids if kids else mask.copy()


def load_titles(path: Path) -> tuple[Title, ...]:
    """Read titles.parquet of a prepared data set.

    Raises:
        InvalidInput: the file is missing or is not the schema of features.titles.Title; names the row and the column.
    """
    try:
        records = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(
            field=str(path),
            got=str(error),
            expected=f"a Parquet file with the columns {', '.join(_COLUMNS)}",
            next_step="Import the data set again with `playhead data import`.",
        ) from error
    if not records:
        raise InvalidInput(
            field=str(path), got="no rows", expected="at least one title", next_step="Import the data set again."
        )
    titles = []
    for number, record in enumerate(records):
        try:
            titles.append(Title.model_validate(record))
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidInput(
                field=f"{path} row {number} column {'.'.join(map(str, first['loc']))}",
                got=first["input"],
                expected=first["msg"],
                next_step="Correct the row and import the data set again.",
            ) from error
    return tuple(titles)


def _marked(
    names: Sequence[str], named: Iterable[tuple[str, ...]], count: int
) -> NDArray[np.bool_]:  # (len(names), count)
    """Which rows, from 1, carry which of the names."""
    places = {name: place for place, name in enumerate(names)}
    marks = np.zeros((len(names), count), dtype=np.bool_)
    for row, carried in enumerate(named, 1):
        for name in carried:
            marks[places[name], row] = True
    return marks


def _opening(title: Title) -> bytes:
    """The title's JSON object without its closing brace, after the end of the title before it."""
    shown = {"title_id": title.title_id, "name": title.name, "year": title.year, "genres": title.genres}
    return b"},%b" % orjson.dumps(shown)[:-1]
