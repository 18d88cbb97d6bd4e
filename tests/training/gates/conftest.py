"""Small models train fastest on one thread."""

from tests.training.recommend.conftest import one_thread

__all__ = ["one_thread"]
