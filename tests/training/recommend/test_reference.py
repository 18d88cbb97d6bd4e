"""The reference of an artifact: shares of the newest plays, the same bytes each time, read back as they were."""

import io

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.titles import Title
from serve.artifacts import Manifest
from serve.errors import ArtifactError
from serve.online.reference import TABLE, TITLES, Play, load_reference, read_grounds
from tests.contracts.small_model import resealed, small_artifact
from tests.training.recommend import audience
from training.recommend.reference import reference_of

HOUR_MS = 3_600_000


def events(**columns) -> pl.DataFrame:
    """Two viewers, who play one title an hour each; `b` likes what it plays."""
    rows = [
        {"event_id": f"{who}{n}{kind}", "profile_id": who, "title_id": f"t{n % 4}", "kind": kind,
         "ts": 1_000 * HOUR_MS + n * HOUR_MS + step, "rank": n % 2}
        for n in range(8) for who in ("a", "b") for step, kind in enumerate(["play", "thumbs_up"][: 1 + (who == "b")])
    ]  # fmt: skip
    return pl.DataFrame(rows).with_columns(**{name: pl.lit(value) for name, value in columns.items()})


def titles() -> list[Title]:
    return [Title(title_id=f"t{n}", name=f"T{n}", genres=("Drama", "Crime")[: 1 + n % 2]) for n in range(5)]


def shares(**columns) -> dict[str, dict[str, float]]:
    tables = reference_of(events(**columns), titles())
    return dict(load_reference(tables[TABLE], tables[TITLES]).shares)


def test_shares_are_of_plays_and_of_what_was_known_before_each() -> None:
    found = shares(device="tv")
    assert all(sum(bins.values()) == pytest.approx(1) for bins in found.values())
    assert found["history"] == {"0": 1 / 8, "1-2": 2 / 8, "3-5": 3 / 8, "6-10": 2 / 8}
    assert found["gap"] == {"<1h": 7 / 14, "<6h": 7 / 14}, "an hour, and an hour less the thumb's millisecond"
    assert found["genre"] == {"Drama": pytest.approx(0.75), "Crime": pytest.approx(0.25), "other": pytest.approx(0)}
    assert found["rank"] == {"0": 0.5, "1": 0.5}
    assert found["device"] == {"tv": 1.0, "other": 0.0}
    assert "region" not in found, "nothing tells it"


def test_plays_are_binned_online_as_they_were() -> None:
    tables = reference_of(events(), titles())
    reference = load_reference(tables[TABLE], tables[TITLES])
    play = Play(profile_id="c", title_id="t1", ts=5 * HOUR_MS, visits=4, gap_s=3_600, region="se", rank=1)
    assert list(reference.bins(play)) == [
        ("history", "3-5", 1.0), ("gap", "<6h", 1.0), ("hour", "03-06", 1.0), ("region", "se", 1.0),
        ("genre", "Drama", 0.5), ("genre", "Crime", 0.5), ("popularity", "2", 1.0), ("rank", "1", 1.0),
    ]  # fmt: skip
    unheard = {name: bin_ for name, bin_, _ in reference.bins(Play(profile_id="c", title_id="t9", ts=0))}
    assert unheard == {"hour": "00-03", "popularity": "new"}
    assert reference.information_bits("t9") > reference.information_bits("t1")
    assert reference.plays["t4"] == 0


def test_the_same_data_gives_the_same_bytes_and_no_plays_give_nothing_to_judge_by() -> None:
    def written(frame: pl.DataFrame) -> bytes:
        buffer = io.BytesIO()
        for table in reference_of(frame, audience.titles()).values():
            pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

    assert written(audience.events()) == written(audience.events().sample(fraction=1, shuffle=True, seed=1))
    nothing = reference_of(audience.events().filter(pl.col("kind") == "finish"), audience.titles())
    assert (nothing[TABLE].num_rows, nothing[TITLES].num_rows) == (0, len(audience.titles()))
    assert load_reference(nothing[TABLE], nothing[TITLES]).shares == {}


def test_an_artifact_tells_its_grounds_and_a_damaged_one_is_refused(tmp_path) -> None:
    assert read_grounds(small_artifact().path).reference is None, "older than references are"

    def change(path, manifest: Manifest) -> Manifest:
        for name, table in {**reference_of(events(), titles()), "vocabulary": pa.table({"title_id": ["t1"]})}.items():
            pq.write_table(table, path / f"{name}.parquet")
        return manifest.model_copy(
            update={"files": {**manifest.files, f"{TABLE}.parquet": "", f"{TITLES}.parquet": ""}}
        )

    folder = resealed(small_artifact(), tmp_path, change)
    grounds = read_grounds(folder)
    assert (grounds.titles, grounds.reference.total_plays) == (1, 16)
    (folder / f"{TABLE}.parquet").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="reference"):
        read_grounds(folder)
    with pytest.raises(ArtifactError):
        read_grounds(tmp_path / "nothing")
