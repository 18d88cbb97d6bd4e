"""Where the parts are, read once from the environment: embedded and real parts are swapped with no code change."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from features.errors import FeaturesError

_LONGEST_MS: Final = 60_000.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses and paths of one Playhead.

    Attributes:
        home: state folder (PLAYHEAD_HOME, default .playhead): data, models, registry, logs.
        redis_url: online store and event log (REDIS_URL; the embedded Valkey's where unset).
        feast_registry: path or SQL URL of Feast's registry (PLAYHEAD_FEAST_REGISTRY).
        store_deadline_ms: longest wait for one online read.
        media: the one folder whose clips may be measured (PLAYHEAD_MEDIA); None where unset: none may.
    """

    home: Path
    redis_url: str
    feast_registry: str
    store_deadline_ms: float = 50.0
    media: Path | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Read the settings; relative paths are relative to the working directory.

        Raises:
            FeaturesError: a deadline that is no positive number.
        """
        home = Path(env.get("PLAYHEAD_HOME", ".playhead")).resolve()
        return cls(
            home=home,
            redis_url=env.get("REDIS_URL", "redis://127.0.0.1:6399/0"),
            feast_registry=env.get("PLAYHEAD_FEAST_REGISTRY", str(home / "feast" / "registry.db")),
            store_deadline_ms=_milliseconds("PLAYHEAD_STORE_DEADLINE_MS", env.get("PLAYHEAD_STORE_DEADLINE_MS", "50")),
            media=Path(env["PLAYHEAD_MEDIA"]).resolve() if env.get("PLAYHEAD_MEDIA") else None,
        )

    @property
    def models(self) -> Path:
        """Folder of model artifacts: models/<name>/<version>/ and models/<name>/champion naming the live version."""
        return self.home / "models"

    @property
    def datasets(self) -> Path:
        """Folder of prepared data sets: data/<name>/{events,titles,profiles}.parquet and dataset.json."""
        return self.home / "data"


def _milliseconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _LONGEST_MS:  # true for NaN, too
        raise FeaturesError(
            field=name,
            got=text,
            expected=f"milliseconds, above 0 and up to {_LONGEST_MS:g}",
            next_step=f"Correct {name}.",
        )
    return value
