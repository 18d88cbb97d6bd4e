"""A replica of the Watchtower: it takes its share of the roles, and each role goes on exactly where it was left.

Roles: `sessions:P` folds a partition of the log into sessions and windows, `slices:S` judges a shard of all slices,
`outages` makes outages of their alarms, `vitals` judges Playhead itself. A role's step writes what came out together
with its checkpoint, in one script that only the role's owner may run. So whoever takes a dead replica's role begins at
its last step and comes to the same windows and alarms: nothing is counted twice, and nothing is missed. Any number of
replicas may run; roles spread.
"""

import logging
import secrets
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Protocol

import orjson
import redis

from features.errors import FeaturesError
from features.networks import store_throughput
from features.qoe import store_qoe
from features.settings import Settings
from serve import vitals
from serve.errors import InvalidInput
from serve.telemetry import records
from serve.telemetry.log import FIELD, PARTITIONS, reports_of, stream_key
from serve.telemetry.quality import TitleQuality
from serve.telemetry.reports import DIMENSIONS
from serve.telemetry.sessions import Sessions, Summary
from serve.telemetry.windows import WINDOW_MS, Window
from serve.watchtower import board, health
from serve.watchtower.board import Store
from serve.watchtower.leases import Lease, LeaseLost, Leases
from serve.watchtower.networks import NetworkSums, merged, throughput_of
from serve.watchtower.outages import Outage
from serve.watchtower.qoe import QoeSums
from serve.watchtower.selfwatch import SelfWatch
from serve.watchtower.slices import SliceWatch
from serve.watchtower.tracker import OutageTracker

SHARD_LATE_MS: Final = 20_000
"""Alarms of a shard that do not come for so long are not waited for."""

IDLE_GRACE_MS: Final = 500
"""A window is closed so long after its end where no entry comes that shows its end."""

VITALS_LATE_MS: Final = 12_000
"""Gateways' counts of a window are judged so long after its end; what comes later is not counted."""

SESSIONS_FORMAT: Final = 2
"""Of the checkpoints of sessions; another one begins anew."""

_ENTRIES: Final = 200
_FIRST_ENTRIES: Final = 8
_REPORTS_A_STEP: Final = 4_000
"""About; the other roles, and the leases, have their turn between steps."""
_TOLD_MS: Final = 2_000
_CHECKPOINT_EVERY: Final = 6
"""Windows between checkpoints of slices and outages; those between are judged again, with the same outcome."""
_TOLD_EVERY: Final = 6
"""Windows between what the feature store is told of networks and titles."""
_STEP_PAUSE_S: Final = 0.1
_TROUBLE_PAUSE_S: Final = 1.0
_TIMEOUT_S: Final = 5.0
_HEAD: Final = b"head"

_log = logging.getLogger(__name__)


class Role(Protocol):
    """What a replica does for as long as it has the lease."""

    def step(self) -> bool:
        """Do what there is to do; whether there was anything.

        Raises:
            LeaseLost: the role is another replica's now.
        """
        ...


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
        with _beginning_anew(self._name):
            restored = self._load(found)
        if restored is None:
            self._clears = bool(found)
            self._position = b"0-0"
            _begin(store)  # before this partition's first entries are read and trimmed
            self.sessions = Sessions(_first_ms(store, partition), closed=self._over.append)
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
        now = _store_ms(self._store)
        if not entries:
            self._close_windows(now - IDLE_GRACE_MS)
        elif now - self._told_ms > _TOLD_MS:  # there is much to read: whoever judges the windows has to wait
            self._leases.commit(self._lease, [self._progress()])
        each = (self.sessions.tally.reports - before) / max(len(entries), 1)
        self._count = int(min(max(_REPORTS_A_STEP / max(each, 1.0), 1), _ENTRIES))
        return bool(entries)

    def _progress(self) -> list[Any]:
        """Tells up to where windows are whole, and that somebody is at it."""
        self._told_ms = _store_ms(self._store)
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


class SlicesRole:
    """Judges one shard of the slices, window by window."""

    def __init__(self, store: Store, leases: Leases, lease: Lease, shard: int) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._since = _store_ms(store)
        self._shard = shard
        self._name = f"slices:{shard}"
        self._next, self._watch = _first_window(store, self._name), SliceWatch(shard, board.SHARDS)
        with _beginning_anew(self._name):
            state = _read_state(store, self._name)
            if state is not None:
                self._watch, self._next = SliceWatch.from_state(state["watch"]), int(state["next"])

    def step(self) -> bool:
        """Judge the next window, if it is there."""
        found = _next_window(self._store, self._next, self._since)
        if found is None:
            return False
        window, _ = found
        alarms = board.dump_alarms(self._watch.see(window))
        self._next += WINDOW_MS
        key = board.alarms_key(window.start_ms)
        commands: list[list[Any]] = [
            ["HSETNX", key, str(self._shard), alarms],
            ["EXPIRE", key, board.WINDOW_TTL_S],
        ]
        if self._next // WINDOW_MS % _CHECKPOINT_EVERY == 0:
            commands.append(_state_command(self._name, {"next": self._next, "watch": self._watch.state()}))
        self._leases.commit(self._lease, commands)
        return True


class OutagesRole:
    """Makes outages of the alarms of all shards."""

    def __init__(self, store: Store, leases: Leases, lease: Lease, settings: Settings) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._since = _store_ms(store)
        self._settings = settings
        self._waits_since = 0
        self._orphans: list[Outage] = []
        with _beginning_anew(board.OUTAGE_ROLE):
            state = _read_state(store, board.OUTAGE_ROLE)
            if state is not None:
                self._tracker = OutageTracker.from_state(state["tracker"])
                self._networks, self._qoe = NetworkSums.load(state["networks"]), QoeSums.load(state["qoe"])
                self._next = int(state["next"])
                return
        self._next, self._tracker = _first_window(store, board.OUTAGE_ROLE), OutageTracker()
        self._networks, self._qoe = NetworkSums(), QoeSums()
        told: Any = store.hvals(board.OUTAGES)
        self._orphans = [outage for outage in map(board.load_outage, told) if outage.is_open]

    def step(self) -> bool:
        """Take the next window in, once all shards have judged it."""
        start = self._next
        found = _next_window(self._store, start, self._since)
        if found is None:
            return False
        window, networks = found
        told: Any = self._store.hgetall(board.alarms_key(start))
        if len(told) < board.SHARDS:
            now = _store_ms(self._store)
            self._waits_since = self._waits_since or now
            if now - self._waits_since < SHARD_LATE_MS:
                return False
        self._waits_since = 0
        alarms = [alarm for _, dumped in sorted(told.items()) for alarm in board.load_alarms(dumped)]
        changed = self._tracker.see(window, sorted(alarms, key=lambda alarm: -alarm.evidence))
        self._next += WINDOW_MS
        changed += self._lost()
        self._networks = merged(self._networks, networks)
        self._qoe.add(window)
        self._commit(changed)
        if self._next // WINDOW_MS % _TOLD_EVERY == 0:
            self._tell_networks()
            self._tell_qoe()
        return True

    def _lost(self) -> list[Outage]:
        """Outages that are told as open, and that were not found again when what is kept was judged anew: closed."""
        due = [orphan for orphan in self._orphans if orphan.updated_ts < self._next]
        self._orphans = [orphan for orphan in self._orphans if orphan not in due]
        known = {outage.outage_id for outage in self._tracker.outages}
        return [
            replace(orphan, state="closed", updated_ts=self._next, closed_ts=self._next)
            for orphan in due
            if orphan.outage_id not in known
        ]

    def _commit(self, changed: list[Outage]) -> None:
        commands: list[list[Any]] = [["SET", board.AS_OF, self._next]]
        for outage in changed:
            dumped = board.dump_outage(outage)
            known: Any = self._store.hget(board.OUTAGES, outage.outage_id)
            if known == dumped:
                continue  # a window that was judged before the replica before died
            commands.append(["HSET", board.OUTAGES, outage.outage_id, dumped])
            commands.append(["XADD", board.LOG, "MAXLEN", "~", board.MOST_LOGGED, "*", board.CHANGE, dumped])
        if changed or self._next // WINDOW_MS % _CHECKPOINT_EVERY == 0:
            state = {
                "next": self._next, "tracker": self._tracker.state(), "networks": self._networks.dump(),
                "qoe": self._qoe.dump(),
            }  # fmt: skip
            commands.append(_state_command(board.OUTAGE_ROLE, state))
            commands += self._forgotten()
        self._leases.commit(self._lease, commands)

    def _forgotten(self) -> list[list[Any]]:
        """Outages that closed long ago."""
        known: Any = self._store.hgetall(board.OUTAGES)
        oldest = self._next - board.KEPT_CLOSED_MS
        old = [name for name, dumped in known.items() if (board.load_outage(dumped).closed_ts or oldest) < oldest]
        return [["HDEL", board.OUTAGES, *old]] if old else []

    def _tell_networks(self) -> None:
        """What is seen of networks, for bitrate decisions."""
        seen = throughput_of(self._networks, self._next)
        if not seen:
            return
        try:
            store_throughput(self._settings, seen)
        except FeaturesError as error:
            _log.warning("throughput of networks was not written: %s", error)

    def _tell_qoe(self) -> None:
        """How playback goes, by network and by title."""
        networks, titles = self._qoe.networks(), self._qoe.titles()
        if not networks and not titles:
            return
        try:
            store_qoe(self._settings, networks, titles)
        except FeaturesError as error:
            _log.warning("how playback goes was not written: %s", error)


class VitalsRole:
    """Judges what all gateways counted of themselves, window by window; each step is a checkpoint."""

    def __init__(self, store: Store, leases: Leases, lease: Lease) -> None:
        self._store = store
        self._leases = leases
        self._lease = lease
        self._next, self._watch = 0, SelfWatch()
        with _beginning_anew(board.VITALS_ROLE):
            state = _read_state(store, board.VITALS_ROLE)
            if state is not None:
                self._watch, self._next = SelfWatch.from_state(state["watch"]), int(state["next"])

    def step(self) -> bool:
        """Judge the next window, once it is over for long enough."""
        now = _store_ms(self._store)
        kept_since = (now - 1000 * vitals.WINDOW_TTL_S) // vitals.WINDOW_MS * vitals.WINDOW_MS
        start = max(self._next, kept_since)  # older ones are gone
        end = start + vitals.WINDOW_MS
        if now < end + VITALS_LATE_MS:
            return False
        changes = self._watch.see(_read_vitals(self._store, start), end)
        state = {"next": end, "watch": self._watch.state()}
        commands: list[list[Any]] = [
            ["SET", health.HEALTH, health.dump_health(self._watch.health())],
            _state_command(board.VITALS_ROLE, state),
        ]
        for change in changes:
            told = health.dump_change(change)
            commands.append(["XADD", health.LOG, "MAXLEN", "~", health.MOST_LOGGED, "*", health.CHANGE, told])
        self._leases.commit(self._lease, commands)
        self._next = end
        for change in changes:
            level = logging.WARNING if change.is_open else logging.INFO
            words = "self alarm" if change.is_open else "self alarm over"
            _log.log(level, "%s: %s %s %s", words, change.what, change.version, change.said)
        return True


class WatchtowerReplica:
    """A replica, in a thread of the caller's.

    Args:
        settings: where the store is.
        name: names it among the replicas.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._store = connect(settings)
        roles = [board.OUTAGE_ROLE, board.VITALS_ROLE, *board.slice_roles(), *board.session_roles()]
        self.leases = Leases(self._store, name, roles)
        self._roles: dict[Lease, Role] = {}

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; the store's troubles are logged and waited out."""
        with self.leases.renewing():
            while not stop.is_set():
                try:
                    busy = self.turn()
                except (redis.RedisError, OSError):
                    _log.exception("watchtower: the store does not answer, will try again")
                    self._roles.clear()
                    stop.wait(_TROUBLE_PAUSE_S)
                    continue
                if not busy:
                    stop.wait(_STEP_PAUSE_S)
        try:
            self.leases.close()
        except (redis.RedisError, OSError):
            _log.warning("watchtower: leases were left to end by themselves")
        self._store.close()

    def turn(self) -> bool:
        """Give each role one step; whether any had something to do."""
        self.leases.tick()
        held = dict(self.leases.held)
        self._roles = {lease: role for lease, role in self._roles.items() if held.get(lease.role) == lease}
        busy = False
        for name in sorted(held):
            lease = held[name]
            if self.leases.held.get(name) != lease:
                continue
            try:
                role = self._roles.get(lease) or self._restore(lease)
                busy = role.step() or busy
            except LeaseLost:
                _log.warning("watchtower: role %s is another replica's now", name)
                self._roles.pop(lease, None)
            self.leases.tick()
        return busy

    def _restore(self, lease: Lease) -> Role:
        kind, _, number = lease.role.partition(":")
        role: Role
        if kind == "sessions":
            role = SessionsRole(self._store, self.leases, lease, int(number))
        elif kind == "slices":
            role = SlicesRole(self._store, self.leases, lease, int(number))
        elif lease.role == board.VITALS_ROLE:
            role = VitalsRole(self._store, self.leases, lease)
        else:
            role = OutagesRole(self._store, self.leases, lease, self._settings)
        self._roles[lease] = role
        return role


def _store_ms(store: Store) -> int:
    """The store's clock, which names the log's entries."""
    told: Any = store.time()
    seconds, microseconds = told
    return int(seconds) * 1000 + int(microseconds) // 1000


def _first_ms(store: Store, partition: int) -> int:
    """When a partition's sessions begin that were never read: at its first entry, or now."""
    first: Any = store.xrange(stream_key(partition), count=1)
    now = _store_ms(store)
    return min(int(first[0][0].split(b"-")[0]), now) if first else now


def _begin(store: Store) -> int:
    """The first window of all, where the log began: the same for all roles, whichever comes first."""
    known: Any = store.get(board.BEGAN)
    if known is None:
        first = min(_first_ms(store, partition) for partition in range(PARTITIONS))
        store.set(board.BEGAN, first // WINDOW_MS * WINDOW_MS, nx=True)
        known = store.get(board.BEGAN)
    return int(known)


def _first_window(store: Store, role: str) -> int:
    """Where a role begins that knows of nothing: at the first window; where it is done with some, that is kept."""
    first = _begin(store)
    if not store.exists(board.state_key(role)):
        return first
    kept_since = _store_ms(store) - 1000 * board.WINDOW_TTL_S
    return max(first, kept_since // WINDOW_MS * WINDOW_MS)


@contextmanager
def _beginning_anew(role: str) -> Iterator[None]:
    """Ends where a checkpoint cannot be read: another version wrote it, or it is damaged."""
    try:
        yield
    except (InvalidInput, AttributeError, IndexError, KeyError, TypeError, ValueError, zlib.error) as error:
        _log.warning("watchtower: %s begins anew, its checkpoint cannot be read: %r", role, error)


def _after(position: bytes) -> bytes:
    """The least position after one."""
    milliseconds, sequence = position.split(b"-")
    return b"%s-%d" % (milliseconds, int(sequence) + 1)


def _next_window(store: Store, start_ms: int, since_ms: int) -> tuple[Window, NetworkSums] | None:
    """A window, once all partitions have told of it; None before."""
    if not board.is_complete(store, start_ms + WINDOW_MS, _store_ms(store), since_ms):
        return None
    return board.read_window(store, start_ms)


def _read_vitals(store: Store, start_ms: int) -> vitals.Window:
    """What all gateways counted in a window, added up."""
    found: Any = store.hgetall(vitals.window_key(start_ms))
    window = vitals.Window()
    for replica, dumped in sorted(found.items()):
        try:
            window.merge(vitals.Window.load(dumped))
        except ValueError as error:
            _log.warning("watchtower: vitals of gateway %s were left out: %s", replica.decode(), error)
    return window


def _read_state(store: Store, role: str) -> dict[str, Any] | None:
    dumped: Any = store.get(board.state_key(role))
    if dumped is None:
        return None
    document: dict[str, Any] = orjson.loads(zlib.decompress(dumped))
    return document


def _state_command(role: str, state: dict[str, Any]) -> list[Any]:
    return ["SET", board.state_key(role), zlib.compress(orjson.dumps(state), 1)]


def connect(settings: Settings) -> Store:
    """A connection with deadlines; it is made at the first call, and again after each loss."""
    return Store.from_url(settings.redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)


def replica_name() -> str:
    """A name that no other replica has."""
    return secrets.token_hex(8)
