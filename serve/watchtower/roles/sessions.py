"""The role `sessions:P`: one partition of the log, folded into sessions."""

import logging
from typing import Any, Final

import orjson

from serve.telemetry import records
from serve.telemetry.log import FIELD, reports_of, stream_key
from serve.telemetry.quality import TitleQuality
from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.sessions import Sessions, Summary
from serve.telemetry.windows import Window
from serve.watchtower import board
from serve.watchtower.board import Store
from serve.watchtower.checkpoints import beginning_anew, store_ms
from serve.watchtower.leases import Lease, Leases
from serve.watchtower.networks import NetworkSums
from serve.watchtower.progress import begin, first_ms

IDLE_GRACE_MS: Final = 500
"""A window is closed so long after its end where no entry comes that shows its end."""

SESSIONS_FORMAT: Final = 2
"""Of the checkpoints of sessions; another one begins anew."""

_ENTRIES: Final = 200
_FIRST_ENTRIES: Final = 8
_REPORTS_A_STEP: Final = 4_000
"""About; the other roles, and the leases, have their turn between steps."""
_TOLD_MS: Final = 2_000
_HEAD: Final = b"head"

_log = logging.getLogger(__name__)


class SessionsRole:
    """Folds one partition of the log into sessions: windows for the board, and records of those that are over."""

    def __init__(self, store: Store, leases: Leases, lease: Lease, partition: int) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._partition = partition
        self._name = f"sessions:{partition}"
        self._key = board.state_key(self._name)
        self._networks = NetworkSums()
        self._quality = TitleQuality(store)
        self._over: list[Summary] = []
        self._count = _FIRST_ENTRIES
        self._told_ms = 0
        found: Any = store.hgetall(self._key)
        self._clears = False  # whether what is there has to go with the first commit
        restored = None
        with beginning_anew(self._name):
            restored = self._load(found)
        if restored is None:
            self._clears = bool(found)
            self._position = b"0-0"
            begin(store)  # before this partition's first entries are read and trimmed
            self.sessions = Sessions(first_ms(store, partition), closed=self._over.append)
        else:
            self._position, self.sessions = restored

    def _load(self, found: dict[bytes, bytes]) -> tuple[bytes, Sessions] | None:
        """The position and the sessions of a checkpoint; None where there is none."""
        if _HEAD not in found:
            return None
        head = orjson.loads(found[_HEAD])
        if head["format"] != SESSIONS_FORMAT:
            raise ValueError(head["format"])
        sessions = [orjson.loads(one) for name, one in found.items() if name != _HEAD]
        return head["position"].encode(), Sessions.load(head["sessions"], sessions, closed=self._over.append)

    def step(self) -> bool:
        """Read a batch of entries; write at the end of each window."""
        answer: Any = self._store.xread({stream_key(self._partition): self._position}, count=self._count)
        entries = answer[0][1] if answer else []
        before = self.sessions.tally.reports
        for position, fields in entries:
            now = int(position.split(b"-")[0])
            self._close_windows(now)
            try:
                reports = reports_of(fields[FIELD])
            except (KeyError, TypeError, ValueError):
                _log.exception("an entry of the telemetry log that is none of ours was left out")
                reports = []
            for report in reports:
                self.sessions.take(report, now)
                self._networks.hear(report)
            self._position = position
        now = store_ms(self._store)
        if not entries:
            self._close_windows(now - IDLE_GRACE_MS)
        elif now - self._told_ms > _TOLD_MS:  # there is much to read: whoever judges the windows has to wait
            self._leases.commit(self._lease, [self._progress()])
        each = (self.sessions.tally.reports - before) / max(len(entries), 1)
        self._count = int(min(max(_REPORTS_A_STEP / max(each, 1.0), 1), _ENTRIES))
        return bool(entries)

    def _progress(self) -> list[Any]:
        """Tells up to where windows are whole, and that somebody is at it."""
        self._told_ms = store_ms(self._store)
        return ["HSET", board.PROGRESS, str(self._partition), f"{self.sessions.window_ms}:{self._told_ms}"]

    def _close_windows(self, now: int) -> None:
        windows = list(self.sessions.advance(now))
        if windows:
            self._commit(windows)

    def _commit(self, windows: list[Window]) -> None:
        """Write the windows, and the state that goes with having read up to the position."""
        networks, self._networks = self._networks, NetworkSums()
        head = {"format": SESSIONS_FORMAT, "position": self._position.decode(), "sessions": self.sessions.dump()}
        commands: list[list[Any]] = [["DEL", self._key]] if self._clears else []
        commands.append(["HSET", self._key, _HEAD, orjson.dumps(head)])
        for name in self.sessions.touched:
            session = self.sessions.session(name)
            if session is None:
                commands.append(["HDEL", self._key, f"s:{name}"])
            else:
                commands.append(["HSET", self._key, f"s:{name}", orjson.dumps(session.dump())])
        for window in windows:
            key = board.window_key(window.start_ms)
            measured = networks if window is windows[-1] else NetworkSums()
            commands.append(["HSET", key, str(self._partition), board.dump_window(window, measured)])
            commands.append(["EXPIRE", key, board.WINDOW_TTL_S])
        commands += self._records()
        commands.append(self._progress())
        commands.append(["XTRIM", stream_key(self._partition), "MINID", _after(self._position)])
        self._leases.commit(self._lease, commands)
        self.sessions.touched.clear()
        self._over.clear()
        self._clears = False

    def _records(self) -> list[list[Any]]:
        """Sessions that are over, for their own log."""
        title = DIMENSIONS.index("title")
        self._quality.read({one.leaf[title] for one in self._over if one.leaf[title] and one.at_kbps})
        return [
            [
                "XADD", records.STREAM, "MAXLEN", "~", records.MOST_WAITING, "*", records.FIELD,
                records.dump_record(one, self._quality.mean_vmaf(one.leaf[title], one.at_kbps)),
            ]
            for one in self._over
        ]  # fmt: skip


def _after(position: bytes) -> bytes:
    """The least position after one."""
    milliseconds, sequence = position.split(b"-")
    return b"%s-%d" % (milliseconds, int(sequence) + 1)
