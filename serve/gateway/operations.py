"""What routes for operators share: the models that there are, one way to ask the store, and text that can be shown."""

from typing import Any, Final

import hiredis

from features.errors import StoreUnavailable
from features.link import StoreLink
from features.settings import Settings
from serve.errors import NotFound, Unavailable
from serve.gateway.errors import Words
from serve.gateway.stages import Stages

PRINTED: Final = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"
"""Text without control characters but tabs and ends of lines: operators read it in terminals."""

_DEADLINE_S: Final = 2.0


class ModelOperations:
    """Routes below /v1/models/{name} that read or change what the store holds of a model.

    Args:
        settings: where the store is.
        stages: which models there are.
    """

    def __init__(self, settings: Settings, stages: Stages) -> None:
        self._link = StoreLink(settings.redis_url)
        self._stages = stages

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    def check_known(self, name: str) -> None:
        """Whether there is a model of that name.

        Raises:
            NotFound: there is none.
        """
        known = sorted({state.name for state in self._stages.models()})
        if name not in known:
            raise NotFound(
                field="name", got=name, expected=f"one of {', '.join(known)}", next_step="See GET /v1/models."
            )

    async def call(self, payload: bytes, count: int = 1) -> list[Any]:
        """Ask the store.

        Args:
            payload: commands, encoded.
            count: how many.

        Raises:
            Unavailable: no answer in time, or an error; a change may have been made all the same.
        """
        try:
            replies = await self._link.call(payload, count=count, deadline_s=_DEADLINE_S)
            for reply in replies:
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
        except (StoreUnavailable, hiredis.ReplyError) as error:
            raise Unavailable(
                field="store", got=Words(type(error).__name__), expected="an answer of the store",
                next_step="Nothing is known to have changed: look at GET /v1/models, and try again.",
            ) from error  # fmt: skip
        return replies
