"""What a rollout of a bitrate policy reads: sessions that asked, and records of sessions that are over, as they come.

Records leave their log once every consumer group has read them (features.sink), so whoever decides rollouts has a group
of its own while one goes on, and takes it away afterwards. What a reader that died had read last is left out.
"""

import logging
from typing import Any, Final

import redis

from serve.rollout.asked import FIELD, STREAM, Asked, read_asked
from serve.rollout.outcomes import Record
from serve.telemetry import records

GROUP: Final = "playhead:rollouts"

_CONSUMER: Final = "judge"
_ENTRIES: Final = 2_000
_ASKED_ENTRIES: Final = 50
"""Of up to 500 sessions each."""

_log = logging.getLogger(__name__)

Store = redis.Redis


class SessionLog:
    """Reads both logs, each entry once.

    Args:
        store: Redis or Valkey.
        position: entry of the sessions that asked after which to go on.

    Attributes:
        position: entry that was read last.
    """

    def __init__(self, store: Store, position: str) -> None:
        self._store = store
        self.position = position
        self._is_begun = False

    def begin(self) -> None:
        """Read records that come from now on, or go on where a reader before was.

        Raises:
            redis.RedisError: the store does not answer.
        """
        try:
            self._store.xgroup_create(records.STREAM, GROUP, id="$", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._is_begun = True

    def end(self, position: str) -> None:
        """Read no more: records need not be kept for this reader; sessions ask later than `position` from then on.

        Raises:
            redis.RedisError: the store does not answer.
        """
        self.position, self._is_begun = position, False
        try:
            self._store.xgroup_destroy(records.STREAM, GROUP)
        except redis.ResponseError as error:
            if "requires the key to exist" not in str(error):
                raise

    def read(self) -> tuple[list[Asked], list[Record], bool]:
        """The next sessions that asked, the next that are over, and whether more wait.

        Those that asked come first: a session is told as over a minute later at least.

        Raises:
            redis.RedisError: the store does not answer.
        """
        if not self._is_begun:
            self.begin()
        asked, more_asked = self._asked()
        if more_asked:
            return asked, [], True
        over, more_over = self._over()
        return asked, over, more_over

    def _asked(self) -> tuple[list[Asked], bool]:
        answer: Any = self._store.xread({STREAM: self.position}, count=_ASKED_ENTRIES)
        entries = answer[0][1] if answer else []
        found = []
        for position, fields in entries:
            self.position = position.decode()
            try:
                found.append(read_asked(fields[FIELD]))
            except (KeyError, ValueError) as error:
                _log.warning("rollouts: an entry of the sessions that asked that is none was left out: %s", error)
        return found, len(entries) == _ASKED_ENTRIES

    def _over(self) -> tuple[list[Record], bool]:
        try:
            answer: Any = self._store.xreadgroup(GROUP, _CONSUMER, {records.STREAM: ">"}, count=_ENTRIES, noack=True)
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._is_begun = False  # the store was lost: begin anew the next time
            return [], False
        entries = answer[0][1] if answer else []
        found = []
        for _, fields in entries:
            try:
                found.append(records.SESSIONS.read((fields or {})[records.FIELD]))
            except (KeyError, TypeError, ValueError) as error:
                _log.warning("rollouts: a record of a session that is none was left out: %r", error)
        return found, len(entries) == _ENTRIES
