"""The reference keeps the engines' contract, and opens no program that would run code."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serve.artifacts import Manifest
from serve.engines import load_engine
from serve.engines.torch import load_program
from serve.errors import ArtifactError
from tests.contracts.engine_contract import EngineContract
from tests.contracts.small_model import resealed_artifact, small_artifact


class TestTorch(EngineContract):
    device = "torch"


def rezipped(content: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def member(members: dict[str, bytes], ending: str) -> str:
    return next(name for name in members if name.endswith(ending))


def use_pickle(members: dict[str, bytes]) -> None:
    name = member(members, "model_weights_config.json")
    config: Any = json.loads(members[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    members[name] = json.dumps(config).encode()


def custom_object(members: dict[str, bytes]) -> None:
    name = member(members, "model_constants_config.json")
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    members[name] = json.dumps({"config": {"x": entry}}).encode()


def sample_inputs(members: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(1)}, buffer)
    members[member(members, "sample_inputs/model.pt")] = buffer.getvalue()


def expression(members: dict[str, bytes]) -> None:
    name = member(members, "models/model.json")
    text = members[name].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    members[name] = (text[:start] + "open('owned', 'w')" + text[text.index('"', start) :]).encode()


def legacy_weights(members: dict[str, bytes]) -> None:
    root = next(iter(members)).split("/")[0]
    members[f"{root}/data/weights/model.pt"] = b"pickle"


def compiled_library(members: dict[str, bytes]) -> None:
    root = next(iter(members)).split("/")[0]
    members[f"{root}/data/aotinductor/model/x.so"] = b"elf"


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (use_pickle, "pickled weights"),
        (custom_object, "pickled constants"),
        (sample_inputs, "sample inputs"),
        (expression, "expression open"),
        (legacy_weights, "member"),
        (compiled_library, "member"),
    ],
)
def test_a_program_that_would_run_code_is_refused(
    change: Callable[[dict[str, bytes]], None], got: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    original = small_artifact().read_bytes("encoder.pt2")
    load_program(rezipped(original, lambda members: None), "encoder")  # it is not the packing that is refused
    with pytest.raises(ArtifactError) as caught:
        load_program(rezipped(original, change), "files.encoder.pt2")
    assert caught.value.field == "files.encoder.pt2"
    assert got in caught.value.got
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"no archive"])
def test_what_is_no_program_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"files\.x\.pt2"):
        load_program(content, "files.x.pt2")


def test_a_program_that_torch_cannot_load_is_refused(tmp_path: Path) -> None:
    def garble(path: Path, manifest: Manifest) -> Manifest:
        def change(members: dict[str, bytes]) -> None:
            name = member(members, "models/model.json")
            members[name] = members[name].replace(b"aten.", b"nope.")

        program = path / "encoder.pt2"
        program.write_bytes(rezipped(program.read_bytes(), change))
        return manifest

    artifact = resealed_artifact(small_artifact(), tmp_path, garble)
    with pytest.raises(ArtifactError, match=r"files\.encoder\.pt2"):
        load_engine(artifact, "encoder", "torch")
