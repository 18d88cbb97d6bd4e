"""The clips that serving's tests make are measured here too."""

from tests.serve.quality.conftest import changed, clip, film

__all__ = ["changed", "clip", "film"]
