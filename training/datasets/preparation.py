"""One door to every data set: prepared if it can be made here, opened if it is there."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from features.settings import Settings
from serve.errors import InvalidInput, NotFound, Unavailable
from training.datasets.dataset import Dataset, DatasetError, check_name, open_dataset
from training.datasets.movielens import prepare_movielens
from training.datasets.synthetic import prepare_synthetic

Progress = Callable[[str, float], None]
"""Told what is being done, and which share of it all is done, 0 to 1."""

MOVIELENS: Final = "ml-100k"
SYNTHETIC: Final = "synthetic"
BUILT_IN: Final = (MOVIELENS, SYNTHETIC)


def _silent(message: str, share: float) -> None:
    del message, share


def _make(name: str, destination: Path, cache: Path, as_of_ms: int) -> Dataset:
    if name == MOVIELENS:
        return prepare_movielens(destination, as_of_ms, cache=cache)
    return prepare_synthetic(destination, as_of_ms=as_of_ms)


def prepare(
    name: str,
    settings: Settings,
    *,
    progress: Progress = _silent,
    as_of_ms: int | None = None,
    refresh: bool = False,
    fallback: bool = False,
) -> Dataset:
    """Open a data set, making it first where it is one of ours and is not there or is damaged.

    Args:
        name: ml-100k, synthetic, or the name of an imported set.
        settings: where the data lies.
        progress: told how it goes.
        as_of_ms: UTC ms; a set that is made now ends less than a week before it. Now if not given.
        refresh: make one of ours anew although it is there, so that its times end now.
        fallback: where ml-100k cannot be downloaded, give the synthetic audience instead.

    Raises:
        InvalidInput: the name is no plain folder name.
        NotFound: no set of that name was imported.
        DatasetError: an imported set is damaged.
        Unavailable: ml-100k cannot be downloaded, and no fallback was asked for.
    """
    check_name(name)
    path = settings.datasets / name
    progress(f"Opening {name}", 0.0)
    if not (refresh and name in BUILT_IN):
        try:
            dataset = open_dataset(path)
        except (NotFound, DatasetError) as error:
            if name not in BUILT_IN:
                known = {*BUILT_IN, *names(settings)}
                if isinstance(error, NotFound):
                    raise NotFound(
                        field="dataset",
                        got=name,
                        expected="one of " + ", ".join(sorted(known)),
                        next_step="Bring your own with: playhead data import PATH.",
                    ) from None
                raise
        else:
            progress(f"Opened {name}", 1.0)
            return dataset
    progress(f"Preparing {name}", 0.1)
    if as_of_ms is None:
        as_of_ms = time.time_ns() // 1_000_000
    try:
        dataset = _make(name, path, settings.home / "cache", as_of_ms)
    except Unavailable as error:
        if not (fallback and name == MOVIELENS):
            raise
        progress(f"{name} is not available ({error.got}); preparing {SYNTHETIC} instead", 0.5)
        return prepare(SYNTHETIC, settings, progress=progress, as_of_ms=as_of_ms)
    progress(f"Prepared {name}", 1.0)
    return dataset


def names(settings: Settings) -> list[str]:
    """The names of the data sets that lie on this machine."""
    if not settings.datasets.is_dir():
        return []
    return sorted(path.parent.name for path in settings.datasets.glob("[!.]*/dataset.json"))


def refuse_built_in(name: str) -> None:
    """Keep an import from taking the name of a set that Playhead makes itself.

    Raises:
        InvalidInput: the name is taken.
    """
    check_name(name)
    if name in BUILT_IN:
        raise InvalidInput(
            field="name", got=name, expected="a name other than " + ", ".join(BUILT_IN), next_step="Choose another."
        )
