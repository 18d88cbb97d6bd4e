"""A seeded synthetic audience, for load tests and for machines that reach no package index.

What a model can learn from it: popularity follows Zipf's law; profiles have tastes by genre and sessions have a mood;
a title of a series is often followed by the next; liked genres are finished and thumbed up more. What it must respect:
kids profiles see kids titles only, and nobody sees what their region does not show.

The same seed and sizes give the same tables, bit for bit, under the pinned numpy.
P profiles, T titles, R regions, G genres, S sessions, V visits (a visit is one viewing of one title).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from serve.errors import InvalidInput
from training.datasets.catalogue import GENRES, REGIONS, Booleans, Catalogue, Floats, Integers, draw_catalogue
from training.datasets.dataset import Dataset, weeks_to, write_dataset

DAYS: Final = 56
DAY_MS: Final = 24 * 3_600_000
EPOCH_MS: Final = 1_767_571_200_000
"""2026-01-05T00:00:00Z, a Monday: the end of the generated time unless told otherwise."""

ZIPF_EXPONENT: Final = 1.0
SEQUEL_CHANCE: Final = 0.6
MOOD_CHANCE: Final = 0.85
REWATCH_CHANCE: Final = 0.08
KIDS_PROFILE_SHARE: Final = 0.15
DEVICES: Final = ("tv", "phone", "tablet", "web", "console")
ROWS: Final = ("top_picks", "trending", "because_you_watched", "new_to_you")
MIN_TITLES: Final = 10
_ATTEMPTS: Final = 8
_WEEKDAY_WEIGHTS: Final = (0.9, 0.85, 0.9, 0.95, 1.2, 1.5, 1.4)


@dataclass(frozen=True, kw_only=True)
class Audience:
    """The generated tables, in the columns of training.datasets.schema.

    Attributes:
        events: oldest first.
        titles: the catalogue.
        profiles: the viewers.
    """

    events: pl.DataFrame
    titles: pl.DataFrame
    profiles: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class _Viewers:
    """Profiles as arrays of P rows; taste is (P, G), rows sum to 1."""

    region: Integers
    kids: Booleans
    taste: Floats
    activity: Floats
    hour: Floats
    device: Integers
    second_device: Integers

    @property
    def group(self) -> Integers:
        """Viewers of one group may see the same titles: 2 * region + kids."""
        return 2 * self.region + self.kids


@dataclass(frozen=True, kw_only=True)
class _Visits:
    """Visits as arrays of V rows, in each profile's order of time."""

    profile: Integers
    title: Integers
    mood: Integers
    device: Integers
    follows: Booleans
    start_ms: Integers
    watched_s: Floats
    finished: Booleans
    liking: Floats


class _Choice:
    """Draws titles by popularity among those of a genre that a group of viewers may see."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.pools: dict[int, tuple[Integers, Floats]] = {}
        self.open: Booleans = np.zeros((2 * len(REGIONS), len(GENRES)), dtype=np.bool_)
        for group in range(2 * len(REGIONS)):
            for genre in range(len(GENRES)):
                pool = catalogue.pool(group // 2, genre, kids=bool(group % 2))
                if len(pool):
                    self.open[group, genre] = True
                    self.pools[group * len(GENRES) + genre] = pool, np.cumsum(catalogue.weight[pool])

    def __call__(self, rng: np.random.Generator, group: Integers, genre: Integers) -> Integers:
        """One title for each (group, genre); every such pool must be open."""
        uniform = rng.random(len(group))
        key = group * len(GENRES) + genre
        order = np.argsort(key, kind="stable")
        titles = np.empty(len(group), dtype=np.int64)
        keys, starts = np.unique(key[order], return_index=True)
        for one, rows in zip(keys.tolist(), np.split(order, starts[1:]), strict=True):
            pool, cumulative = self.pools[one]
            titles[rows] = pool[np.searchsorted(cumulative, uniform[rows] * cumulative[-1], side="right")]
        return titles


def _draw_viewers(rng: np.random.Generator, profiles: int, choice: _Choice) -> _Viewers:
    region = rng.choice(len(REGIONS), size=profiles, p=(0.4, 0.3, 0.2, 0.1))
    kids = rng.random(profiles) < KIDS_PROFILE_SHARE
    allowed = choice.open[2 * region + kids]
    taste = (rng.gamma(0.35, size=(profiles, len(GENRES))) + 1e-6) * allowed
    evening = rng.choice((7.5, 13.0, 19.0, 20.5, 22.0), size=profiles, p=(0.05, 0.15, 0.2, 0.4, 0.2))
    return _Viewers(
        region=region,
        kids=kids,
        taste=taste / taste.sum(axis=1, keepdims=True),
        activity=np.minimum(rng.lognormal(0.0, 0.9, profiles), 12.0),
        hour=np.where(kids, 16.5, evening),
        device=rng.choice(len(DEVICES), size=profiles, p=(0.5, 0.22, 0.1, 0.12, 0.06)),
        second_device=rng.integers(0, len(DEVICES), profiles),
    )


def _from_taste(rng: np.random.Generator, taste: Floats) -> Integers:
    """One genre for each row of taste (n, G)."""
    passed = rng.random((len(taste), 1)) * taste.sum(axis=1, keepdims=True) >= np.cumsum(taste, axis=1)
    # rounding may pass the last genre; the most liked one is always allowed
    genre = passed.sum(axis=1)
    chosen: Integers = np.where(genre < taste.shape[1], genre, taste.argmax(axis=1))
    return chosen


def _draw_visits(
    rng: np.random.Generator, catalogue: Catalogue, viewers: _Viewers, choice: _Choice, sessions: int
) -> _Visits:
    """About two visits a session, without those that would reach past the end of the generated time."""
    profile = rng.choice(len(viewers.activity), size=sessions, p=viewers.activity / viewers.activity.sum())  # (S,)
    weekday = np.tile(_WEEKDAY_WEIGHTS, DAYS // 7)
    day = rng.choice(DAYS, size=sessions, p=weekday / weekday.sum())
    hour = rng.normal(viewers.hour[profile], 1.8) % 24
    begin_ms = day * DAY_MS + (hour * 3_600_000).astype(np.int64)
    order = np.lexsort((begin_ms, profile))
    profile, begin_ms = profile[order], begin_ms[order]
    mood = _from_taste(rng, viewers.taste[profile])
    device = np.where(rng.random(sessions) < 0.8, viewers.device[profile], viewers.second_device[profile])

    anchor = np.repeat(np.arange(sessions), rng.geometric(0.65, sessions))  # the session of each chosen title
    moved = np.flatnonzero(rng.random(len(anchor)) >= MOOD_CHANCE)
    genre = mood[anchor]
    genre[moved] = _from_taste(rng, viewers.taste[profile[anchor[moved]]])
    chosen = choice(rng, viewers.group[profile[anchor]], genre)

    run = np.minimum(rng.geometric(1 - SEQUEL_CHANCE, len(chosen)), catalogue.left[chosen] + 1)
    step = np.arange(run.sum()) - np.repeat(np.cumsum(run) - run, run)
    title = np.repeat(chosen, run) + step
    session = np.repeat(anchor, run)  # (V,)

    seen = np.unique(profile[session] * len(catalogue.weight) + title, return_index=True)[1]
    kept = rng.random(len(title)) < REWATCH_CHANCE
    kept[seen] = True
    title, session, step = title[kept], session[kept], step[kept]

    who = profile[session]
    liking = np.log(viewers.taste[who, catalogue.genre[title]] * len(GENRES) + 0.05) + catalogue.appeal[title]
    finished = rng.random(len(title)) < 1 / (1 + np.exp(-(0.4 + 0.8 * liking + 0.5 * (step > 0))))
    share = np.where(finished, 1.0, 0.02 + 0.9 * rng.beta(1.2, 2.0, len(title)))
    watched_s = np.round(share * catalogue.duration_s[title], 1)

    # a visit begins when its session does or when the visit before it has ended, whichever is later:
    # start[i] = before[i] + max over earlier j of the same profile of (begin[j] - before[j]), before = time used so far
    used_ms = ((watched_s + rng.uniform(30.0, 240.0, len(title))) * 1000).astype(np.int64)
    before_ms = np.cumsum(used_ms) - used_ms
    apart = who * (DAYS * DAY_MS + int(used_ms.sum()) + 1)  # keeps one profile's maximum out of the next one's
    start_ms = np.maximum.accumulate(begin_ms[session] - before_ms + apart) - apart + before_ms
    kept = start_ms + used_ms < DAYS * DAY_MS
    return _Visits(
        profile=who[kept],
        title=title[kept],
        mood=mood[session][kept],
        device=device[session][kept],
        follows=(step > 0)[kept],
        start_ms=start_ms[kept],
        watched_s=watched_s[kept],
        finished=finished[kept],
        liking=liking[kept],
    )


def _to_events(
    rng: np.random.Generator, catalogue: Catalogue, viewers: _Viewers, choice: _Choice, visits: _Visits
) -> pl.DataFrame:
    """One row an event, oldest first; title and profile are row numbers, ts counts from the generated time's begin."""
    v = visits
    end_ms = v.start_ms + (v.watched_s * 1000).astype(np.int64)

    def part(
        kind: str, visit: Integers, ts: Integers, *, title: Integers | None = None, position_s: Floats | None = None,
        rank: Integers | None = None,
    ) -> pl.DataFrame:  # fmt: skip
        """Events of some visits, all arrays aligned with `visit`; a rank of -1 stands for none."""
        return pl.DataFrame(
            {
                "visit": visit,
                "title": v.title[visit] if title is None else title,
                "ts": ts,
                "position_s": np.zeros(len(visit)) if position_s is None else position_s,
                "rank": np.full(len(visit), -1) if rank is None else rank,
            }
        ).with_columns(kind=pl.lit(kind))

    asked = np.flatnonzero(~v.follows)  # these were picked from a page; the others followed by autoplay
    rank = np.minimum(rng.geometric(0.25, len(asked)) - 1, 30)
    beside = rng.integers(0, 3, len(asked))  # how many other titles were seen on the page
    other_visit, other_rank = np.repeat(asked, beside), np.repeat(rank, beside)
    other_rank += 1 + np.arange(len(other_rank)) - np.repeat(np.cumsum(beside) - beside, beside)
    other = choice(rng, viewers.group[v.profile[other_visit]], v.mood[other_visit])
    passed = other != v.title[other_visit]
    other, other_visit, other_rank = other[passed], other_visit[passed], other_rank[passed]

    everyone = np.arange(len(v.title))
    finished, left = np.flatnonzero(v.finished), np.flatnonzero(~v.finished)
    midway = everyone[rng.random(len(everyone)) < 0.6]
    at = rng.uniform(0.1, 0.9, len(midway))
    liked = finished[rng.random(len(finished)) < 0.25 / (1 + np.exp(-v.liking[finished]))]
    disliked = left[rng.random(len(left)) < 0.2 / (1 + np.exp(1.0 + v.liking[left]))]
    listed = np.flatnonzero(rng.random(len(other)) < 0.06)
    unlisted = listed[rng.random(len(listed)) < 0.3]
    unlisted_ms = v.start_ms[other_visit[unlisted]] + (rng.uniform(1.0, 48.0, len(unlisted)) * 3_600_000).astype(
        np.int64
    )
    in_time = unlisted_ms < DAYS * DAY_MS

    events = pl.concat(
        [
            part("impression", asked, v.start_ms[asked] - 5_000, rank=rank),
            part("impression", other_visit, v.start_ms[other_visit] - 5_000, title=other, rank=other_rank),
            part("add_to_list", other_visit[listed], v.start_ms[other_visit[listed]] - 2_000, title=other[listed]),
            part("play", asked, v.start_ms[asked], rank=rank),
            part("play", np.flatnonzero(v.follows), v.start_ms[v.follows]),
            part(
                "progress",
                midway,
                v.start_ms[midway] + (at * v.watched_s[midway] * 1000).astype(np.int64),
                position_s=np.round(at * v.watched_s[midway], 1),
            ),
            part("progress", left, end_ms[left], position_s=v.watched_s[left]),
            part("finish", finished, end_ms[finished], position_s=v.watched_s[finished]),
            part("thumbs_up", liked, end_ms[liked] + 4_000),
            part("thumbs_down", disliked, end_ms[disliked] + 4_000),
            part(
                "remove_from_list", other_visit[unlisted[in_time]], unlisted_ms[in_time], title=other[unlisted[in_time]]
            ),
        ]
    )
    visit = events["visit"].to_numpy()
    return events.with_columns(
        profile=v.profile[visit],
        device=v.device[visit],
        duration_s=catalogue.duration_s[events["title"].to_numpy()],
        row=pl.when(pl.col("rank") >= 0).then(rng.integers(0, len(ROWS), len(everyone))[visit]),
    ).sort("ts", "visit", maintain_order=True)


def _ids(prefix: str, count: int) -> pl.Series:
    width = len(str(max(count - 1, 0)))
    return pl.select(pl.format(prefix + "{}", pl.int_range(count).cast(pl.String).str.zfill(width))).to_series()


def generate(*, profiles: int, titles: int, events: int, seed: int, as_of_ms: int = EPOCH_MS) -> Audience:
    """Generate an audience.

    Args:
        profiles: P, at least 1; inactive ones may have no events.
        titles: T, at least 10.
        events: exactly how many events, at least 1.
        seed: 0 and up; the same seed and sizes give the same tables.
        as_of_ms: UTC ms; the newest event lies less than a week before it. Moves all times by whole weeks.

    Raises:
        InvalidInput: a size out of range, or more events than these profiles could make in 56 days.
    """
    for field, got, low in (
        ("profiles", profiles, 1),
        ("titles", titles, MIN_TITLES),
        ("events", events, 1),
        ("seed", seed, 0),
    ):
        if got < low:
            raise InvalidInput(
                field=field, got=got, expected=f"a whole number from {low}", next_step="Choose a larger one."
            )
    rng = np.random.default_rng(seed)
    catalogue = draw_catalogue(rng, titles, ZIPF_EXPONENT)
    choice = _Choice(catalogue)
    viewers = _draw_viewers(rng, profiles, choice)

    sessions = 50 + events // 8
    for attempt in range(_ATTEMPTS):
        chance = np.random.default_rng((seed, attempt))
        visits = _draw_visits(chance, catalogue, viewers, choice, sessions)
        log = _to_events(chance, catalogue, viewers, choice, visits)
        if events <= log.height <= 1.1 * events + 500:
            break
        sessions = min(50 + int(sessions * 1.04 * events / max(log.height, 1)), 50 + 3 * events)
    else:
        if log.height < events:
            raise InvalidInput(
                field="events",
                got=events,
                expected=f"what {profiles} profiles and {titles} titles can give in {DAYS} days (about {log.height})",
                next_step="Ask for fewer events or for more profiles and titles.",
            )
    log = log.tail(events)

    begin_ms = EPOCH_MS - DAYS * DAY_MS
    begin_ms += weeks_to(begin_ms + int(log["ts"][-1]), as_of_ms)
    profile_ids, title_ids = _ids("p", profiles), _ids("t", titles)
    regions, devices, rows = (pl.Series(values, dtype=pl.String) for values in (REGIONS, DEVICES, ROWS))
    region = regions.gather(viewers.region)
    return Audience(
        events=log.select(
            event_id=_ids(f"s{seed}-", events),
            profile_id=profile_ids.gather(log["profile"]),
            title_id=title_ids.gather(log["title"]),
            kind="kind",
            ts=pl.col("ts") + begin_ms,
            position_s="position_s",
            duration_s="duration_s",
            request_id=pl.when(pl.col("rank") >= 0).then(pl.format(f"s{seed}-r" + "{}", "visit")),
            row=rows.gather(log["row"]),
            rank=pl.when(pl.col("rank") >= 0).then("rank"),
            device=devices.gather(log["device"]),
            region=region.gather(log["profile"]),
        ),
        titles=catalogue.frame(title_ids, begin_ms),
        profiles=pl.DataFrame({"profile_id": profile_ids, "region": region, "kids": viewers.kids}),
    )


def prepare_synthetic(
    destination: Path,
    *,
    profiles: int = 5_000,
    titles: int = 3_000,
    events: int = 500_000,
    seed: int = 0,
    as_of_ms: int = EPOCH_MS,
) -> Dataset:
    """Generate an audience and write it as a data set.

    Args:
        destination: the set's folder; replaced if it is there.
        profiles: see generate.
        titles: see generate.
        events: see generate.
        seed: see generate.
        as_of_ms: see generate.

    Raises:
        InvalidInput: see generate.
    """
    audience = generate(profiles=profiles, titles=titles, events=events, seed=seed, as_of_ms=as_of_ms)
    return write_dataset(
        destination,
        source=f"synthetic audience, profiles={profiles} titles={titles} events={events} seed={seed}",
        events=audience.events,
        titles=audience.titles,
        profiles=audience.profiles,
        notes=("Nobody watched this: it is generated.",),
    )
