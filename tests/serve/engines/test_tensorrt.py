"""TensorRT keeps the engines' contract, where there is a GPU; elsewhere it says what is missing."""

import atexit
import functools
import importlib.util
import logging
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from serve.artifacts import MANIFEST, Artifact, read_artifact
from serve.engines import load_engine
from serve.engines.tensorrt import compile_artifact
from serve.errors import Unavailable
from tests.contracts.engine_contract import EngineContract
from tests.contracts.small_model import copy_of, small_artifact

HAS_GPU = torch.cuda.is_available() and importlib.util.find_spec("torch_tensorrt") is not None


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU and playhead[gpu]")
class TestTensorRt(EngineContract):
    device = "cuda"

    @classmethod
    @functools.cache
    def artifact(cls) -> Artifact:
        folder = Path(tempfile.mkdtemp(prefix="playhead-small-model-gpu-"))
        atexit.register(shutil.rmtree, folder)
        return compile_artifact(read_artifact(copy_of(small_artifact(), folder)))


@pytest.mark.skipif(HAS_GPU, reason="for machines with no GPU")
class TestNoGpu:
    def test_compiling_says_what_is_missing(self) -> None:
        with pytest.raises(Unavailable, match="device cuda"):
            compile_artifact(small_artifact())

    def test_cuda_says_what_is_missing(self) -> None:
        with pytest.raises(Unavailable) as caught:
            load_engine(small_artifact(), "encoder", "cuda")
        assert caught.value.field == "device cuda"
        assert "tensorrt" in caught.value.got or "GPU" in caught.value.got
        assert "playhead[gpu]" in caught.value.next_step

    def test_auto_takes_the_cpu_and_says_why(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="serve.engines")
        assert load_engine(small_artifact(), "encoder", "auto").device == "cpu"
        assert "the artifact has no TensorRT engine" in caplog.text

    def test_auto_passes_over_an_engine_that_cannot_run(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = copy_of(small_artifact(), tmp_path)
        engine = path / "tensorrt" / "sm86" / "encoder.engine"
        engine.parent.mkdir(parents=True)
        engine.write_bytes(b"plan")
        manifest = small_artifact().manifest
        files = {**manifest.files, "tensorrt/sm86/encoder.engine": sha256(b"plan").hexdigest()}
        (path / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
        artifact = read_artifact(path)  # the version does not change with engines
        assert load_engine(artifact, "encoder", "auto").device == "cpu"
        assert "not on the GPU: device cuda" in caplog.text
