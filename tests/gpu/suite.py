"""`make test-gpu`: the tests that need an NVIDIA GPU, and their table of figures; JSON as the last line."""

import importlib.util
import sys

import pytest
import torch

from tests.gpu.rows import ROWS, as_json, hardware, markdown

FOLDERS = ("tests/gpu", "tests/serve/engines/test_tensorrt.py")


def missing() -> str:
    """What this machine lacks; empty where the suite can run."""
    if not torch.cuda.is_available():
        return f"no usable NVIDIA GPU (torch {torch.__version__})"
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx_bindings")):
        return "no TensorRT: pip install 'playhead[gpu]'"
    return ""


def main(arguments: list[str]) -> int:
    """Run the suite, or say in one line why not."""
    lacks = missing()
    if lacks:
        print(f"test-gpu: skipped, nothing was tested: {lacks}")  # noqa: T201
        print(as_json([], passed=False, skipped=lacks))  # noqa: T201
        return 0
    # Torch's compilers warn of their own parts; the suite's own code is held to warnings by `make test`.
    code = int(pytest.main(["-m", "gpu", "-W", "default", *FOLDERS, *arguments]))
    print(f"\n{hardware()}\n\n{markdown(ROWS)}\n")  # noqa: T201
    print(as_json(ROWS, passed=code == 0))  # noqa: T201
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
