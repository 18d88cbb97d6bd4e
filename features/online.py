"""Reading a profile's features for a request: one round trip, a deadline, and a visible fallback."""

from collections import Counter
from typing import Final

from hiredis import ReplyError

from features.errors import CorruptRecord, StoreTimeout, StoreUnavailable
from features.history import History
from features.layout import command
from features.link import StoreLink
from features.profiles import ProfileFeatures
from features.records import READ_FIELDS, decode_features, profile_key
from features.settings import Settings

TIMEOUT: Final = "features_timeout"
UNAVAILABLE: Final = "features_unavailable"
CORRUPT: Final = "features_corrupt"

_HMGET_TAIL: Final = b"".join(b"$%d\r\n%b\r\n" % (len(field), field) for field in READ_FIELDS)
_HMGET_HEAD: Final = b"*%d\r\n" % (len(READ_FIELDS) + 2) + command("HMGET")[4:]


class OnlineFeatures:
    """Reads profiles as Feast stores them. Belongs to one event loop.

    Attributes:
        outcomes: how many reads ended how: "ok", "unknown" (no such profile), or a degraded reason.
    """

    def __init__(self, settings: Settings, *, link: StoreLink | None = None, remembered: int = 512) -> None:
        """Connects at the first read.

        Args:
            settings: where the store is, and the usual deadline.
            link: a connection to share; without one, its own.
            remembered: of how many profiles the decoded record is kept beside its bytes. Every read asks the store;
                where the bytes are as before, decoding them, the larger part of a read's cost, is left out.
        """
        self.outcomes: Counter[str] = Counter({"ok": 0, "unknown": 0, TIMEOUT: 0, UNAVAILABLE: 0, CORRUPT: 0})
        self._deadline_ms = settings.store_deadline_ms
        self._link = link or StoreLink(settings.redis_url)
        self._remembered = remembered
        self._decoded: dict[str, tuple[list[bytes | None], ProfileFeatures]] = {}

    async def read(self, profile_id: str, deadline_ms: float | None = None) -> ProfileFeatures:
        """The features of a profile; never raises for the store's trouble.

        Args:
            profile_id: whose.
            deadline_ms: longest wait in milliseconds; settings.store_deadline_ms where None.

        Returns:
            The features; empty with known=False where the profile is unknown; empty with a reason in degraded where the
            store is down ("features_unavailable"), too slow ("features_timeout") or holds bytes that are no record
            ("features_corrupt").
        """
        deadline_s = (self._deadline_ms if deadline_ms is None else deadline_ms) / 1000
        key = profile_key(profile_id)
        payload = b"%b$%d\r\n%b\r\n%b" % (_HMGET_HEAD, len(key), key, _HMGET_TAIL)
        try:
            (values,) = await self._link.call(payload, deadline_s=deadline_s)
            if isinstance(values, ReplyError):
                return self._fallback(profile_id, CORRUPT if "WRONGTYPE" in str(values) else UNAVAILABLE)
            features = self._decode(profile_id, values)
        except StoreTimeout:
            return self._fallback(profile_id, TIMEOUT)
        except StoreUnavailable:
            return self._fallback(profile_id, UNAVAILABLE)
        except CorruptRecord:
            return self._fallback(profile_id, CORRUPT)
        self.outcomes["ok" if features.known else "unknown"] += 1
        return features

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()

    def _decode(self, profile_id: str, values: list[bytes | None]) -> ProfileFeatures:
        """The features in a record, which the caller may change as it likes."""
        before = self._decoded.pop(profile_id, None)
        features = before[1] if before is not None and before[0] == values else decode_features(profile_id, values)
        self._decoded[profile_id] = values, features  # at the end again: the dict is ordered by last use
        if len(self._decoded) > self._remembered:
            del self._decoded[next(iter(self._decoded))]
        history = History(features.history.entries.copy(), features.history.n_events)
        return ProfileFeatures(profile_id, known=features.known, history=history, stats=features.stats)

    def _fallback(self, profile_id: str, reason: str) -> ProfileFeatures:
        self.outcomes[reason] += 1
        return ProfileFeatures(profile_id, degraded=(reason,))
