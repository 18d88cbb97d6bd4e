"""The newest of what a model was trained on, in shares of bins: the reference that live traffic is held against.

Two tables of an artifact (training.recommend.reference writes them; versions older than they are have none):

    reference.parquet         feature, bin (strings), share (float64, sums to 1 a feature), count (int64, plays)
    reference_titles.parquet  title_id (string), genres (list of strings), plays (int64), most played first

A play is binned by `Reference.bins`, in training and online alike. Shares are of plays: how many the profile had made
before (`history`), how long its last event was ago (`gap`), the hour of the day (`hour`, UTC), `device`, `region`,
`genre` of the title (each of k genres counts 1/k), its decile of `popularity` (0: titles with the first tenth of all
plays; new: not played before), and its `rank` in the row. A feature that the training events do not tell is not there.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from serve.artifacts import MANIFEST, Artifact, Manifest
from serve.errors import ArtifactError

TABLE: Final = "reference"
TITLES: Final = "reference_titles"

HISTORY, GAP, HOUR = "history", "gap", "hour"
DEVICE, REGION, GENRE, POPULARITY, RANK = "device", "region", "genre", "popularity", "rank"
FEATURES: Final = (HISTORY, GAP, HOUR, DEVICE, REGION, GENRE, POPULARITY, RANK)

OTHER: Final = "other"
NEW: Final = "new"

_HISTORY_FROM: Final = (0, 1, 3, 6, 11, 21, 51, 101)
_HISTORY: Final = ("0", "1-2", "3-5", "6-10", "11-20", "21-50", "51-100", "101+")
_GAP_FROM_S: Final = (0, 300, 3_600, 6 * 3_600, 86_400, 3 * 86_400, 7 * 86_400, 30 * 86_400)
_GAP: Final = ("<5min", "<1h", "<6h", "<1d", "<3d", "<7d", "<30d", "30d+")
_RANK_FROM: Final = (0, 1, 2, 3, 6, 11, 21)
_RANK: Final = ("0", "1", "2", "3-5", "6-10", "11-20", "21+")
_HOURS: Final = 3
_DAY_MS: Final = 86_400_000
_DECILES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One play, with what was known before it.

    Attributes:
        profile_id: whose.
        title_id: what.
        ts: when, UTC milliseconds.
        visits: plays of the profile before; None: unknown.
        gap_s: seconds since its last event; None: unknown, or it is its first.
        device: kind of device; empty: unknown.
        region: region; empty: unknown.
        rank: place in the row, from 0; None: it came from no row, or that is unknown.
    """

    profile_id: str
    title_id: str
    ts: int
    visits: int | None = None
    gap_s: int | None = None
    device: str = ""
    region: str = ""
    rank: int | None = None


class Reference:
    """Shares of bins, and what is known of titles.

    Args:
        shares: feature -> bin -> share of plays.
        genres: title -> its genres.
        plays: title -> its plays, most played first.
    """

    def __init__(
        self,
        shares: Mapping[str, Mapping[str, float]],
        genres: Mapping[str, Sequence[str]],
        plays: Mapping[str, int],
    ) -> None:
        self.shares = shares
        self.genres = genres
        self.plays = plays
        self.total_plays = sum(plays.values())
        self._deciles = _deciles_of(plays)

    def bins(self, play: Play) -> Iterator[tuple[str, str, float]]:
        """(feature, bin, weight) of a play; features that it does not tell are left out."""
        if play.visits is not None:
            yield HISTORY, _HISTORY[bisect_right(_HISTORY_FROM, play.visits) - 1], 1.0
        if play.gap_s is not None:
            yield GAP, _GAP[bisect_right(_GAP_FROM_S, max(play.gap_s, 0)) - 1], 1.0
        yield HOUR, hour_bin(play.ts), 1.0
        for feature, value in ((DEVICE, play.device), (REGION, play.region)):
            if value:
                yield feature, self._named(feature, value), 1.0
        genres = self.genres.get(play.title_id) or ()
        for genre in genres:
            yield GENRE, self._named(GENRE, genre), 1.0 / len(genres)
        yield POPULARITY, self._deciles.get(play.title_id, NEW), 1.0
        if play.rank is not None:
            yield RANK, _RANK[bisect_right(_RANK_FROM, max(play.rank, 0)) - 1], 1.0

    def _named(self, feature: str, value: str) -> str:
        """The value where it is one of the reference's bins."""
        known = self.shares.get(feature)
        return value if known is None or value in known else OTHER

    def information_bits(self, title_id: str) -> float:
        """Self-information of a title, -log2 of its share of plays, bits; one more play than it had is counted."""
        total = self.total_plays + len(self.plays) + 1
        return -log2((self.plays.get(title_id, 0) + 1) / total)


def hour_bin(ts: int) -> str:
    """The part of the day that a moment is in, UTC."""
    begin = ts % _DAY_MS // 3_600_000 // _HOURS * _HOURS
    return f"{begin:02}-{begin + _HOURS:02}"


def _deciles_of(plays: Mapping[str, int]) -> dict[str, str]:
    """Title -> which tenth of all plays it begins in, most played titles first."""
    total, before, deciles = max(sum(plays.values()), 1), 0, {}
    for title_id, count in plays.items():
        if count:
            deciles[title_id] = str(_DECILES * before // total)
            before += count
    return deciles


def reference_tables(reference: Reference, counts: Mapping[str, Mapping[str, int]]) -> dict[str, pa.Table]:
    """The tables of an artifact, in an order that follows from their content.

    Args:
        reference: what is written.
        counts: feature -> bin -> plays that were counted.
    """
    rows = [
        (feature, bin_, share, counts.get(feature, {}).get(bin_, 0))
        for feature in FEATURES
        for bin_, share in sorted(reference.shares.get(feature, {}).items())
    ]
    features, bins, shares, plays = zip(*rows, strict=True) if rows else ((), (), (), ())
    titles = list(reference.plays)
    return {
        TABLE: pa.table({
            "feature": pa.array(features, pa.string()), "bin": pa.array(bins, pa.string()),
            "share": pa.array(shares, pa.float64()), "count": pa.array(plays, pa.int64()),
        }),
        TITLES: pa.table({
            "title_id": pa.array(titles, pa.string()),
            "genres": pa.array([list(reference.genres.get(title, ())) for title in titles], pa.list_(pa.string())),
            "plays": pa.array([reference.plays[title] for title in titles], pa.int64()),
        }),
    }  # fmt: skip


def load_reference(bins: pa.Table, titles: pa.Table) -> Reference:
    """The reverse of `reference_tables`.

    Raises:
        KeyError: a column is missing.
        TypeError: a value is.
        ValueError: a value is of another kind.
    """
    shares: dict[str, dict[str, float]] = {}
    for row in bins.to_pylist():
        shares.setdefault(row["feature"], {})[row["bin"]] = float(row["share"])
    listed = titles.to_pylist()
    genres = {row["title_id"]: tuple(row["genres"]) for row in listed}
    return Reference(shares, genres, {row["title_id"]: int(row["plays"]) for row in listed})


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """What a version says of itself that online figures need.

    Attributes:
        titles: how many titles it knows; 0: unknown.
        reference: what it was trained on; None: it is older than references are.
    """

    titles: int = 0
    reference: Reference | None = None


def read_grounds(folder: Path) -> Grounds:
    """Read them from a version's folder, each file against its hash in the manifest; no graph is read.

    Args:
        folder: of the version.

    Raises:
        ArtifactError: it is not there, damaged, or its tables are other ones.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise _wrong(MANIFEST, str(error)[:200]) from error
    artifact = Artifact(path=folder.resolve(), manifest=manifest)
    titles = _table(artifact, "vocabulary").num_rows if "vocabulary.parquet" in manifest.files else 0
    if f"{TABLE}.parquet" not in manifest.files or f"{TITLES}.parquet" not in manifest.files:
        return Grounds(titles=titles)
    try:
        reference = load_reference(_table(artifact, TABLE), _table(artifact, TITLES))
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(f"{TABLE}.parquet", repr(error)) from error
    return Grounds(titles=titles, reference=reference)


def _table(artifact: Artifact, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(artifact.read_bytes(f"{name}.parquet")))
    except pa.ArrowException as error:
        raise _wrong(f"{name}.parquet", str(error)[:200]) from error


def _wrong(name: str, got: str) -> ArtifactError:
    return ArtifactError(
        field=name, got=got, expected="a file of the artifact, as it was written",
        next_step="Restore the file, or train or publish the model again.",
    )  # fmt: skip
