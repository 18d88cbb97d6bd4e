"""The best that any policy could have done, had it known the future: a plan and a bound, by dynamic programming.

Units: time s, sizes bytes; the value of a session is the sum of QoE over its segments from the second one on.

After k segments a session stands at a point x of its trace with R seconds of rebuffering behind it; the buffer follows
(k segments - x - k round trips + R). What is left of the value, U = value - weight * R, does not depend on time. At
the same k and last rung, a state with no later x, no more R and no less U is at least as good whatever is fetched
next. So for each last rung the search keeps, for each step of U on a grid of `levels` steps of the title's span of
quality, up to `room` states (x, R) of which none is better than another, and drops what a higher step is better than.

- The plan: real states of the simulator, so what it brings when it is played is a lower bound of the optimum. Lost are
  only states beyond `room`, and what the player's sleeping in whole steps does to the comparison above.
- The bound: states of one step that there is no room for are merged into one with their best x, R and U, and a full
  player sleeps exactly as long as needed: no sequence of rungs is worth more. For a ladder whose rungs differ by whole
  steps (Pensieve's do) U is exact on the grid.

Both drop states that can't come to more than the best plan known (`Outlook`). Long titles with many rungs get wider
steps, so that a search simulates about MOST_DOWNLOADS downloads.

On the 142 Norway traces (Envivio, 0.05 s of CPU a trace) plan and bound are the same for the linear QoE: 1.1495 per
segment; on VMAF, where U is not on a grid, they are 53.99 and 54.03. With 11 rungs of up to 60 Mbit/s and 144 to 377
segments on mobile networks they part by 1 to 9 %.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve.bitrate.observations import Observations
from serve.errors import InvalidInput
from training.bitrate.compiled import compiled
from training.bitrate.simulator import BYTES_PER_KBIT, Sessions, download, idle

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVELS: Final = 160
ROOM: Final = 4
MOST_DOWNLOADS: Final = 5_000_000
_MOST_COMPARED: Final = 64
_TINY: Final = 1e-9
_SLACK: Final = 1e-7
_PRICES: Final = 12
_MOST_ROWS: Final = 100_000


@compiled
def _swing(change: float, rise: float, fall: float) -> float:
    return rise * change if change > 0 else -fall * change


@compiled
def _grown(array: np.ndarray, size: int) -> np.ndarray:
    larger = np.empty(size, array.dtype)
    larger[: len(array)] = array
    return larger


class Outlook(NamedTuple):
    """What may still come, whatever is fetched, at several prices of a byte.

    Attributes:
        prices: QoE a byte (P,).
        tail: the most that segments k.. bring above the price of their bytes, for each k (P, S + 1).
        drift: QoE a step of quality: their changes bring at most this times how far the last one is above the first.
        at_s: points of the trace where its throughput changes, from where the session begins (M,).
        carried: bytes until there (M,).
        most: the most, from there on, of the price of all bytes carried when the last download ends, and the weight of
            the rebuffering that makes (P, M); enough points for whatever begins before the title would be over.
        due_s: point of the trace by which the last download has to end for no rebuffering.
        largest: bytes of the whole title at its largest.
    """

    prices: Floats
    tail: Floats
    drift: float
    at_s: Floats
    carried: Floats
    most: Floats
    due_s: float
    largest: float


@compiled
def _look_out(  # noqa: C901
    session: np.void, times_s: Floats, kbps: Floats, sizes: Floats, quality: Floats
) -> Outlook:
    segments, rungs = sizes.shape
    rise, fall, weight = session["rise"], session["fall"], session["quality"]
    worth = (quality[:, -1] - quality[:, 0]).sum() * weight / (sizes[:, -1] - sizes[:, 0]).sum()
    prices = np.zeros(_PRICES)
    for p in range(1, _PRICES):
        prices[p] = max(worth, 0.0) * 2.0 ** (0.5 * (p - _PRICES // 2))
    # A change of quality d brings at most drift * d, and those add up to drift * (last - first quality).
    drifts = rise + fall <= 0
    drift = min(max(rise, 0.0), -fall) if drifts else 0.0
    tail = np.zeros((_PRICES, segments + 1))
    for k in range(segments - 1, -1, -1):
        for p in range(_PRICES):
            best = -np.inf
            for rung in range(rungs):
                turn = drift * quality[k, rung] if k == segments - 1 else 0.0
                if not drifts and k > 0:
                    turn = rise * (quality[k, rung] - quality[k - 1].min())
                    turn = max(turn, fall * (quality[k - 1].max() - quality[k, rung]), 0.0)
                best = max(best, weight * quality[k, rung] + turn - prices[p] * sizes[k, rung])
            tail[p, k] = tail[p, k + 1] + best
    due_s = (segments - 1) * (session["segment_s"] - session["rtt_s"]) - session["rtt_s"]
    largest = 0.0
    for k in range(segments):
        largest += sizes[k].max()
    at_s, carried, count = np.zeros(1024), np.zeros(1024), 1
    row, at, enough = session["row"], session["at_s"], np.inf
    while carried[count - 1] < enough and count < _MOST_ROWS:
        if count == len(at_s):
            at_s, carried = _grown(at_s, 2 * count), _grown(carried, 2 * count)
        span_s = times_s[row] - at
        at_s[count] = at_s[count - 1] + span_s
        carried[count] = carried[count - 1] + kbps[row] * BYTES_PER_KBIT * session["payload"] * span_s
        if enough == np.inf and at_s[count] >= due_s:
            enough = carried[count] + largest
        count += 1
        at = times_s[row]
        row += 1
        if row == len(times_s):
            row, at = 1, 0.0
    most = np.empty((_PRICES, count))
    for p in range(_PRICES):
        best = -np.inf
        for m in range(count - 1, -1, -1):
            best = max(best, prices[p] * carried[m] + session["rebuffer"] * (at_s[m] - due_s))
            most[p, m] = best
    return Outlook(prices, tail, drift, at_s[:count].copy(), carried[:count].copy(), most, due_s, largest)


@compiled
def _until(outlook: Outlook, at_s: float) -> tuple[int, float]:
    """First entry of the outlook after a point of the trace, and the bytes carried until that point."""
    m = int(np.searchsorted(outlook.at_s, at_s, side="right"))
    share = 0.0
    if m < len(outlook.at_s):
        share = (at_s - outlook.at_s[m - 1]) / (outlook.at_s[m] - outlook.at_s[m - 1])
    before, after = outlook.carried[m - 1], outlook.carried[min(m, len(outlook.at_s) - 1)]
    return m, float(before + share * (after - before))


@compiled
def _most_in_all(outlook: Outlook, rebuffer: float, k: int, x_s: float, stall_s: float, gain: float) -> float:
    """No continuation of a state before segment k brings more; `gain` is its U less drift * its last quality.

    The last download ends at a point t of the trace, so no more bytes are fetched than the trace carries until then. At
    any price of a byte, what is still to come is worth at most its best value above that price, and the price of those
    bytes, less the rebuffering that an end at t means; the least over prices of the most over t is a bound.
    """
    end_s = max(outlook.due_s + stall_s, x_s)
    wait = rebuffer * (end_s - outlook.due_s)
    bound = outlook.tail[0, k] + wait
    _, carried = _until(outlook, x_s)
    after, carried_at_end = _until(outlook, end_s)
    if after < len(outlook.at_s) and carried + outlook.largest <= outlook.carried[-1]:
        for p in range(1, len(outlook.prices)):
            most = max(outlook.prices[p] * carried_at_end + wait, outlook.most[p, after])
            bound = min(bound, outlook.tail[p, k] - outlook.prices[p] * carried + most)
    return float(gain + bound)


@compiled
def _search(  # noqa: C901, PLR0912, PLR0915
    session: np.void, times_s: Floats, kbps: Floats, sizes: Floats, quality: Floats, outlook: Outlook, levels: int,
    room: int, floor: float, relaxed: bool, plan: Integers,  # noqa: FBT001
) -> float:  # fmt: skip
    """Fill `plan` with the rungs of the best sequence found above `floor` (not if `relaxed`); its value, or the bound.

    Args:
        session: at its start.
        times_s: of its trace.
        kbps: of its trace.
        sizes: bytes (S, R).
        quality: likewise.
        outlook: of the session.
        levels: steps of the grid to the title's span of quality.
        room: states for each step and last rung.
        floor: a value that is known to be reached; states that can't come to more are dropped.
        relaxed: find the bound.
        plan: rungs (S,).
    """
    segments, rungs = sizes.shape
    rebuffer, rise, fall, weight = session["rebuffer"], session["rise"], session["fall"], session["quality"]
    segment_s, rtt_s, cap_s, step_s = (
        session["segment_s"],
        session["rtt_s"],
        session["max_buffer_s"],
        session["sleep_s"],
    )
    width = max(weight * (quality.max() - quality.min()) / levels, _TINY)
    most_steps = max(MOST_DOWNLOADS // (segments * rungs * rungs), 16)

    # States after k segments: point x of the trace (and where that is in it), R, U, what they can come to at most, last
    # rung, entry in the history.
    count = 1
    x, stall, gain, ceiling = np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, np.inf)
    row, at = np.full(1, session["row"]), np.full(1, session["at_s"])
    last, entry = np.zeros(1, np.int64), np.full(1, -1)
    parent, fetched, entries = np.empty(1024, np.int64), np.empty(1024, np.int64), 0
    for k in range(segments):
        next_x, next_stall, next_gain = np.empty(count * rungs), np.empty(count * rungs), np.empty(count * rungs)
        next_ceiling = np.empty(count * rungs)
        next_row, next_at = np.empty(count * rungs, np.int64), np.empty(count * rungs)
        next_last, next_entry = np.empty(count * rungs, np.int64), np.empty(count * rungs, np.int64)
        kept = 0
        for rung in range(rungs):
            if k == 0 and not np.isnan(session["first_rung"]) and rung != min(int(session["first_rung"]), rungs - 1):
                continue
            new_x, new_stall, new_gain, new_ceiling = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
            new_row, new_at, origin = np.empty(count, np.int64), np.empty(count), np.empty(count, np.int64)
            new = 0
            for i in range(count):
                took_s, to_row, to_at = download(times_s, kbps, row[i], at[i], sizes[k, rung], session["payload"])
                buffer_s = k * (segment_s - rtt_s) - x[i] + stall[i]
                after_s = buffer_s - took_s - rtt_s
                to_x, to_stall = x[i] + took_s, stall[i] + max(-after_s, 0.0)
                over_s = max(after_s, 0.0) + segment_s - cap_s
                if over_s > 0:
                    if step_s > 0 and not relaxed:
                        over_s = math.ceil(over_s / step_s) * step_s
                    to_row, to_at = idle(times_s, to_row, to_at, over_s)
                    to_x += over_s
                if k == 0 and segments > 1:
                    to_gain = -rebuffer * to_stall  # what the first segment is worth does not count
                else:
                    turn = 0.0 if k == 0 else _swing(quality[k, rung] - quality[k - 1, last[i]], rise, fall)
                    to_gain = gain[i] + weight * quality[k, rung] + turn
                most = to_gain + rebuffer * to_stall
                if k + 1 < segments:
                    level = to_gain - outlook.drift * quality[k, rung]
                    most = _most_in_all(outlook, rebuffer, k + 1, to_x, to_stall, level)
                most = min(most, ceiling[i])
                if most < floor - _SLACK:
                    continue
                new_ceiling[new] = most
                new_x[new], new_stall[new], new_gain[new] = to_x, to_stall, to_gain
                new_row[new], new_at[new], origin[new] = to_row, to_at, i
                new += 1
            if new == 0:
                continue
            low = new_gain[:new].min()
            span = new_gain[:new].max() - low
            each = max(width, span / most_steps)
            steps = int(span / each + 0.5) + 1
            table, used = np.empty((steps, room), np.int64), np.zeros(steps, np.int64)
            for c in range(new):
                step = min(int((new_gain[c] - low) / each + 0.5), steps - 1)
                beaten, slot = False, 0
                while slot < used[step]:
                    s = table[step, slot]
                    if new_x[s] <= new_x[c] + _TINY and new_stall[s] <= new_stall[c] + _TINY:
                        if relaxed:
                            new_gain[s] = max(new_gain[s], new_gain[c])
                            new_ceiling[s] = max(new_ceiling[s], new_ceiling[c])
                            new_stall[s] = min(new_stall[s], new_stall[c])
                        beaten = True
                        break
                    if new_x[c] <= new_x[s] and new_stall[c] <= new_stall[s]:
                        if relaxed:
                            new_gain[c] = max(new_gain[s], new_gain[c])
                            new_ceiling[c] = max(new_ceiling[s], new_ceiling[c])
                        used[step] -= 1
                        table[step, slot] = table[step, used[step]]
                    else:
                        slot += 1
                if beaten:
                    continue
                if used[step] < room:
                    table[step, used[step]] = c
                    used[step] += 1
                    continue
                near, worst = 0, 0
                for slot in range(room):
                    s = table[step, slot]
                    if abs(new_stall[s] - new_stall[c]) < abs(new_stall[table[step, near]] - new_stall[c]):
                        near = slot
                    if new_stall[s] > new_stall[table[step, worst]]:
                        worst = slot
                if relaxed:
                    s = table[step, near]
                    if new_x[c] < new_x[s]:
                        new_x[s], new_row[s], new_at[s] = new_x[c], new_row[c], new_at[c]
                    new_stall[s] = min(new_stall[s], new_stall[c])
                    new_gain[s] = max(new_gain[s], new_gain[c])
                    new_ceiling[s] = max(new_ceiling[s], new_ceiling[c])
                elif new_stall[c] < new_stall[table[step, worst]]:
                    table[step, worst] = c
            begin = kept
            for step in range(steps - 1, -1, -1):
                for slot in range(used[step]):
                    c = table[step, slot]
                    beaten = False
                    for s in range(kept - 1, max(begin, kept - _MOST_COMPARED) - 1, -1):
                        if next_x[s] <= new_x[c] and next_stall[s] <= new_stall[c] and next_gain[s] >= new_gain[c]:
                            beaten = True
                            break
                    if beaten:
                        continue
                    next_x[kept], next_stall[kept], next_gain[kept] = new_x[c], new_stall[c], new_gain[c]
                    next_row[kept], next_at[kept], next_last[kept] = new_row[c], new_at[c], rung
                    next_entry[kept], next_ceiling[kept] = entries, new_ceiling[c]
                    kept += 1
                    if not relaxed:
                        if entries == len(parent):
                            parent, fetched = _grown(parent, 2 * entries), _grown(fetched, 2 * entries)
                        parent[entries], fetched[entries] = entry[origin[c]], rung
                        entries += 1
        count = kept
        x, stall, gain, ceiling, row, at, last, entry = (
            next_x[:kept], next_stall[:kept], next_gain[:kept], next_ceiling[:kept], next_row[:kept], next_at[:kept],
            next_last[:kept], next_entry[:kept],
        )  # fmt: skip
    best, at_end = floor, -1
    for i in range(count):
        value = min(gain[i] + rebuffer * stall[i], ceiling[i])
        if value > best:
            best, at_end = value, entry[i]
    if at_end >= 0 and not relaxed:
        for k in range(segments - 1, -1, -1):
            plan[k] = fetched[at_end]
            at_end = parent[at_end]
    return best


class Planned(NamedTuple):
    """What is known of the optimum of one session.

    Attributes:
        rungs: a plan (S,).
        value: what it brings: the sum of QoE from the second segment on.
        bound: no plan brings more.
    """

    rungs: Integers
    value: float
    bound: float


def find_plan(sessions: Sessions, index: int, *, levels: int = LEVELS, room: int = ROOM) -> Planned:
    """Plan one session that has not begun.

    Args:
        sessions: video on demand that plays from its first segment on, with nothing left to chance.
        index: which of them.
        levels: steps of the grid to the title's span of quality.
        room: states for each step.

    Raises:
        InvalidInput: a session with noise, a live target, a start-up buffer, or a viewer who may leave.
    """
    session, rows = sessions.state[index], sessions.trace_rows
    for name in ("noise", "live_target_s", "leave_per_s", "leave_per_rebuffer_s", "segment"):
        _refuse_unless(name, session[name], session[name] == 0, "0")
    _refuse_unless("startup_s", session["startup_s"], session["startup_s"] <= session["segment_s"], "up to one segment")
    span = slice(rows.offset[session["trace"]], rows.offset[session["trace"] + 1])
    whole = (slice(session["segments"]), slice(session["rungs"]))
    sizes = np.ascontiguousarray(sessions.titles.segment_bytes[(session["video"], *whole)])
    quality = np.ascontiguousarray(sessions.titles.quality[(session["measure"], session["video"], *whole)])
    world = (session, rows.times_s[span], rows.kbps[span], sizes, quality)
    task = (*world, _look_out(*world))
    rungs, value = np.zeros(len(sizes), np.int64), -math.inf
    for steps, kept in ((levels // 16, 1), (levels // 4, 1), (levels, room)):  # what a quick search finds cuts the next
        value = _search(*task, max(steps, 1), kept, value, False, rungs)  # noqa: FBT003
    bound = _search(*task, levels, room, value, True, rungs)  # noqa: FBT003
    constant = float(session["constant"]) * max(len(sizes) - 1, 1)
    return Planned(rungs, value + constant, bound + constant)


def _refuse_unless(name: str, got: object, fits: object, expected: str) -> None:
    if not fits:
        raise InvalidInput(
            field=f"settings.{name}", got=got, expected=f"{expected}, for the optimum to be known",
            next_step="Leave `optimum` out of --policy.",
        )  # fmt: skip


class Optimum:
    """The plan of each session, as a policy: the one that looks into the future.

    Attributes:
        name: as tables print it.
        plans: of the sessions that were started last.
    """

    name = "optimum"

    def __init__(self) -> None:
        self.plans: list[Planned] = []

    def start(self, n: int) -> None:
        """Forget the plans."""
        del n
        self.plans = []

    def choose(self, observations: Observations, sessions: Sessions) -> Integers:
        """Rung of each session (B,)."""
        del observations
        if not self.plans:
            self.plans = [find_plan(sessions, i) for i in range(len(sessions))]
        at = zip(self.plans, sessions.state["segment"], strict=True)
        return np.array([plan.rungs[min(segment, len(plan.rungs) - 1)] for plan, segment in at])

    @property
    def bounds(self) -> Floats:
        """Upper bound of each session's mean QoE per segment from its second one on (B,)."""
        return np.array([plan.bound / max(len(plan.rungs) - 1, 1) for plan in self.plans])
