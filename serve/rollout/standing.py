"""Which version answers, for those who are no gateway: training, gates, evaluations and commands.

It is found as a gateway of this machine finds it (serve.rollout.follower): by the plan in the store, else by the note
of the gateways here, else by the folder's `champion`; but a version that was named in the folder and not taken into
account yet is about to be the champion.
"""

from pathlib import Path
from typing import Any, Final

import orjson
import redis

from features.settings import Settings
from serve.artifacts import read_champion
from serve.rollout.board import load_plan, plan_key
from serve.rollout.plans import RolloutPlan

SERVING: Final = "serving.json"
"""In a model's folder: the champion that answered here last, and which `champion` was taken into account."""

_TIMEOUT_S: Final = 2.0


def read_serving(path: Path) -> dict[str, str | None]:
    """The gateways' note; empty where there is none that can be read."""
    try:
        document = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def find_champion(settings: Settings, model: str) -> str | None:
    """The version that answers most requests, or will once a gateway looks; None: there is none.

    A store that does not answer, or whose plan can't be read, is done without.

    Args:
        settings: where models and the store are.
        model: which.

    Raises:
        ArtifactError: the folder's `champion` names no version that is there.
    """
    return champion_of(settings, model, _read_plan(settings, model))


def champion_of(settings: Settings, model: str, plan: RolloutPlan | None) -> str | None:
    """The same, given the plan that the store has; None: it has none.

    Raises:
        ArtifactError: the folder's `champion` names no version that is there.
    """
    path = read_champion(settings.models, model)
    named = None if path is None else path.name
    serving = read_serving(settings.models / model / SERVING)
    published = plan.published if plan is not None else None
    if serving and named not in {None, serving.get("taken"), published}:
        return named
    if plan is not None and plan.champion is not None:
        return plan.champion
    return (serving.get("champion") or named) if serving.get("taken") == named else named


def champion_folder(settings: Settings, model: str) -> Path | None:
    """Folder of the version that `find_champion` finds, which may not lie on this machine; None: there is none.

    Args:
        settings: where models and the store are.
        model: which.

    Raises:
        ArtifactError: the folder's `champion` names no version that is there.
    """
    version = find_champion(settings, model)
    return None if version is None else settings.models / model / version


def _read_plan(settings: Settings, model: str) -> RolloutPlan | None:
    try:
        with redis.Redis.from_url(
            settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        ) as store:
            dumped: Any = store.get(plan_key(model))
        return None if dumped is None else load_plan(dumped)
    except (redis.RedisError, OSError, ValueError):
        return None
