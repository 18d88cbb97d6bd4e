"""Artifacts: whatever is wrong with one is refused by name, and what runs keeps running."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.artifacts import (
    MANIFEST,
    MAX_FILE_BYTES,
    Artifact,
    Manifest,
    add_derived,
    content_version,
    read_artifact,
    read_champion,
    read_table,
    set_champion,
)
from serve.engines import load_engine
from serve.errors import ArtifactError
from tests.contracts.small_model import copy_of, example, resealed, small_artifact


@pytest.fixture
def artifact() -> Artifact:
    return small_artifact()


def flip(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def rename_file(manifest: dict, name: str) -> None:
    manifest["files"][name] = manifest["files"].pop("encoder.pt2")


def sparse(path: Path, size_bytes: int) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(size_bytes)


def replace_by_link(path: Path) -> None:
    moved = path.rename(path.parent.parent / f"moved-{path.name}")
    path.symlink_to(moved)


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a flipped byte in a table": (lambda path: flip(path / "vocabulary.parquet"), "files.vocabulary.parquet", "SHA"),
    "a flipped byte in a program": (lambda path: flip(path / "encoder.pt2"), "files.encoder.pt2", "SHA"),
    "flipped weights": (lambda path: flip(path / "openvino/ranker.bin"), "files.openvino/ranker.bin", "SHA"),
    "a truncated file": (lambda path: os.truncate(path / "ranker.pt2", 100), "files.ranker.pt2", "SHA"),
    "an empty file": (lambda path: os.truncate(path / "ranker.pt2", 0), "files.ranker.pt2", "SHA"),
    "a missing file": (lambda path: (path / "titles.pt2").unlink(), "files.titles.pt2", "no file"),
    "a missing folder": (lambda path: shutil.rmtree(path / "openvino"), "files.openvino/", "no file"),
    "a huge file": (lambda path: sparse(path / "encoder.pt2", MAX_FILE_BYTES + 1), "files.encoder.pt2", "4294967297"),
    "an extra file": (lambda path: sparse(path / "notes.txt", 9), "files.notes.txt", "9 bytes"),
    "an extra huge file": (lambda path: sparse(path / "openvino/x.bin", 1 << 40), "files.openvino/x.bin", "bytes"),
    "an extra link": (lambda path: (path / "x").symlink_to("/etc/passwd"), "files.x", "symbolic link"),
    "a link for a file": (lambda path: replace_by_link(path / "encoder.pt2"), "files.encoder.pt2", "symbolic link"),
    "a link for a folder": (lambda path: replace_by_link(path / "openvino"), "files.openvino", "symbolic link"),
    "a link for the manifest": (lambda path: replace_by_link(path / MANIFEST), MANIFEST, "symbolic link"),
    "a pipe for a file": (lambda path: replace_by_fifo(path / "encoder.pt2"), "files.encoder.pt2", "no regular file"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), MANIFEST, "No such file"),
    "a truncated manifest": (lambda path: os.truncate(path / MANIFEST, 300), MANIFEST, "schema_version"),
    "a huge manifest": (lambda path: sparse(path / MANIFEST, 1 << 30), MANIFEST, "1073741824"),
    "no JSON": (lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe"), MANIFEST, ""),
    "a later schema": (lambda path: edit(path, lambda m: m.update(schema_version=2)), "schema_version", "2"),
    "an unknown field": (lambda path: edit(path, lambda m: m.update(run="x.py")), f"{MANIFEST}: run", "x.py"),
    "no graphs": (lambda path: edit(path, lambda m: m.update(graphs={})), f"{MANIFEST}: graphs", ""),
    "another version": (lambda path: edit(path, lambda m: m.update(version="0" * 12)), f"{MANIFEST}: version", "0000"),
    "a changed parameter": (lambda path: edit(path, lambda m: m["parameters"].update(length=1)), "version", ""),
    "a changed limit": (
        lambda path: edit(path, lambda m: m["graphs"]["encoder"]["limits"].update(B=[1, 9])),
        "version",
        "",
    ),
    "another folder name": (lambda path: path.rename(path.parent / "abc"), "artifact folder", "abc"),
    "a path upwards": (lambda path: edit(path, lambda m: rename_file(m, "../encoder.pt2")), "files", ""),
    "a path upwards within": (lambda path: edit(path, lambda m: rename_file(m, "a/../../b")), "files", ""),
    "an absolute path": (lambda path: edit(path, lambda m: rename_file(m, "/etc/passwd")), "files", ""),
    "a hidden path": (lambda path: edit(path, lambda m: rename_file(m, ".git/config")), "files", ""),
    "a backslash": (lambda path: edit(path, lambda m: rename_file(m, "..\\x")), "files", ""),
    "no hash": (lambda path: edit(path, lambda m: m["files"].update({"encoder.pt2": "x"})), "files.encoder.pt2", "x"),
    "an unlisted program": (lambda path: edit(path, lambda m: m["files"].pop("encoder.pt2")), "version", ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name_and_the_old_engine_keeps_working(
    damage: str, artifact: Artifact, tmp_path: Path
) -> None:
    path = copy_of(artifact, tmp_path)
    engine = _engine_of(artifact)
    expected = engine(example("encoder"))["state"]
    change, field, got = DAMAGES[damage]
    change(path)
    damaged = path if path.exists() else path.parent / "abc"
    with pytest.raises(ArtifactError) as caught:
        read_artifact(damaged)
    assert field in caught.value.field
    assert got in caught.value.got
    assert caught.value.next_step
    np.testing.assert_array_equal(engine(example("encoder"))["state"], expected)


_engines = {}


def _engine_of(artifact: Artifact):
    return _engines.setdefault(artifact.version, load_engine(artifact, "encoder", "cpu"))


def test_an_engine_outlives_its_files(artifact: Artifact, tmp_path: Path) -> None:
    path = copy_of(artifact, tmp_path)
    engines = [load_engine(read_artifact(path), "encoder", device) for device in ("cpu", "torch")]
    before = [engine(example("encoder"))["state"] for engine in engines]
    for file in path.rglob("*.*"):
        if file.is_file():
            file.write_bytes(bytes(file.stat().st_size))  # in place: a mapped file would change under the engine
    shutil.rmtree(path)
    for engine, state in zip(engines, before, strict=True):
        np.testing.assert_array_equal(engine(example("encoder"))["state"], state)


@pytest.mark.parametrize("device", ["cpu", "torch"])
def test_a_file_that_changes_after_the_check_is_refused(device: str, artifact: Artifact, tmp_path: Path) -> None:
    checked = read_artifact(copy_of(artifact, tmp_path))
    flip(checked.path / "openvino/encoder.bin")
    flip(checked.path / "encoder.pt2")
    with pytest.raises(ArtifactError, match=r"files\..*encoder.*SHA-256"):
        load_engine(checked, "encoder", device)


def test_only_listed_files_are_read(artifact: Artifact) -> None:
    for name in ("../secret", MANIFEST, "/etc/passwd"):
        with pytest.raises(ArtifactError):
            artifact.read_bytes(name)


def example_without(name: str) -> Callable[[Path, Manifest], Manifest]:
    def change(path: Path, manifest: Manifest) -> Manifest:
        with np.load(path / "encoder.example.npz") as arrays:
            content = {key: arrays[key] for key in arrays.files if key != name}
        np.savez(path / "encoder.example.npz", **content)
        return manifest

    return change


def pickled_example(path: Path, manifest: Manifest) -> Manifest:
    np.savez(path / "encoder.example.npz", **{"in.titles": np.array([{}], dtype=object)})
    return manifest


def plain_table(path: Path, manifest: Manifest) -> Manifest:
    (path / "vocabulary.parquet").write_bytes(b"title_id,row\n")
    return manifest


@pytest.mark.parametrize(
    ("change", "field", "got"),
    [
        (example_without("in.titles"), "encoder.example.npz: encoder.titles", "nothing"),
        (example_without("out.state"), "encoder.example.npz: encoder.state", "nothing"),
        (pickled_example, "encoder.example.npz", "allow_pickle"),
        (plain_table, "files.vocabulary.parquet", ""),
    ],
)
def test_consistent_nonsense_is_refused(
    change: Callable[[Path, Manifest], Manifest], field: str, got: str, artifact: Artifact, tmp_path: Path
) -> None:
    path = resealed(artifact, tmp_path, change)
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    assert field in caught.value.field
    assert got in caught.value.got


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    artifact = small_artifact()
    name = data.draw(st.sampled_from(sorted(artifact.manifest.files)))
    size = (artifact.path / name).stat().st_size
    place = data.draw(st.integers(0, size - 1))
    path = copy_of(artifact, tmp_path_factory.mktemp("flip"))
    flip(path / name, place)
    with pytest.raises(ArtifactError, match="SHA-256"):
        read_artifact(path)
    shutil.rmtree(path)


def test_provenance_is_no_part_of_the_version(artifact: Artifact) -> None:
    manifest = artifact.manifest
    assert content_version(manifest) == manifest.version
    assert content_version(manifest.model_copy(update={"git_commit": "abc"})) == manifest.version
    assert content_version(manifest.model_copy(update={"metrics": {"ndcg@10": 0.3}})) != manifest.version
    assert content_version(manifest.model_copy(update={"data_snapshot": "other"})) != manifest.version
    for folder in ("tensorrt/sm90", "tensorrt-rtx/sm86-sm89"):
        engines = {**manifest.files, f"{folder}/encoder.engine": "0" * 64}
        assert content_version(manifest.model_copy(update={"files": engines})) == manifest.version
    other = {**manifest.files, "tensorrt-other/encoder.engine": "0" * 64}
    assert content_version(manifest.model_copy(update={"files": other})) != manifest.version


class TestDerivedFiles:
    @pytest.fixture
    def copied(self, artifact: Artifact, tmp_path: Path) -> Artifact:
        return read_artifact(copy_of(artifact, tmp_path))

    def test_they_are_added_and_replaced_and_checked(self, copied: Artifact) -> None:
        relative = "tensorrt-rtx/sm86-sm89/encoder.engine"
        for content in (b"one", b"other"):
            added = add_derived(read_artifact(copied.path), {relative: content})
            assert added.version == copied.version
            assert added.read_bytes(relative) == content
        flip(copied.path / relative)
        with pytest.raises(ArtifactError, match=r"tensorrt-rtx/sm86-sm89/encoder\.engine.*SHA-256"):
            read_artifact(copied.path)

    @pytest.mark.parametrize(
        "relative",
        ["encoder.pt2", "tensorrt", "tensorrt/../encoder.pt2", "tensorrt-rtx//x", "/tensorrt/x", "tensorrt/a/b/c/d"],
    )
    def test_nothing_else_is_written(self, copied: Artifact, relative: str) -> None:
        with pytest.raises(ArtifactError, match="a file of the version itself"):
            add_derived(copied, {relative: b"x"})
        assert read_artifact(copied.path).manifest == copied.manifest

    def test_nothing_is_written_behind_a_link(self, copied: Artifact, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (copied.path / "tensorrt").symlink_to(outside)
        with pytest.raises(ArtifactError, match="a folder behind a link"):
            add_derived(copied, {"tensorrt/sm86/encoder.engine": b"x"})
        assert list(outside.iterdir()) == []


def test_tables(artifact: Artifact) -> None:
    assert read_table(artifact, "vocabulary").equals(pa.table({"title_id": ["t1", "t2"], "row": [1, 2]}))
    with pytest.raises(ArtifactError, match=r"files\.prices\.parquet"):
        read_table(artifact, "prices")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="artifact"):
        read_artifact(tmp_path / "none")


class TestChampion:
    def test_none_yet(self, tmp_path: Path) -> None:
        assert read_champion(tmp_path, "small") is None

    def test_set_read_and_replace(self, artifact: Artifact, tmp_path: Path) -> None:
        copy_of(artifact, tmp_path / "small")
        set_champion(tmp_path, "small", artifact.version)
        set_champion(tmp_path, "small", artifact.version)
        assert read_champion(tmp_path, "small") == tmp_path / "small" / artifact.version
        assert sorted(path.name for path in (tmp_path / "small").iterdir()) == sorted([artifact.version, "champion"])

    @pytest.mark.parametrize("version", ["0" * 12, "../other", "", "champion"])
    def test_a_version_that_is_not_there_does_not_become_champion(
        self, version: str, artifact: Artifact, tmp_path: Path
    ) -> None:
        copy_of(artifact, tmp_path / "small")
        set_champion(tmp_path, "small", artifact.version)
        with pytest.raises(ArtifactError, match="small/champion"):
            set_champion(tmp_path, "small", version)
        assert read_champion(tmp_path, "small") == tmp_path / "small" / artifact.version

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../etc", b"0" * 12, b"."])
    def test_a_broken_pointer_is_refused(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "small").mkdir()
        (tmp_path / "small" / "champion").write_bytes(content)
        with pytest.raises(ArtifactError, match="small/champion"):
            read_champion(tmp_path, "small")
