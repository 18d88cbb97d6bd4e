"""Data sets: the schema that a company brings, its import, MovieLens 100K and a synthetic audience."""

from training.datasets.dataset import Dataset, DatasetError, interactions, open_dataset
from training.datasets.preparation import names, prepare

__all__ = ["Dataset", "DatasetError", "interactions", "names", "open_dataset", "prepare"]
