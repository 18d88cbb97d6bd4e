"""A small audience whose next title mostly follows from the last one: what a recommender must be able to learn."""

import numpy as np
import polars as pl

from features.titles import Title
from training.recommend.interactions import Interactions

TITLES = 40
FOLLOWERS = 2


def chain(users: int = 120, length: int = 12, *, seed: int = 0, titles: int = TITLES) -> list[tuple[str, str, float]]:
    """(user, title, UTC seconds) of walks on a random graph where each title has FOLLOWERS likely followers."""
    random = np.random.default_rng(seed)
    followers = np.stack([random.permutation(titles)[:FOLLOWERS] for _ in range(titles)])
    triples = []
    for user in range(users):
        seen: set[int] = set()
        title = int(random.integers(titles))
        for step in range(length):
            seen.add(title)
            triples.append((f"u{user}", f"t{title}", 1_700_000_000.0 + 86_400 * step + user))
            open_ = [int(t) for t in followers[title] if t not in seen]
            left = [t for t in range(titles) if t not in seen]
            title = (
                open_[int(random.integers(len(open_)))] if open_ and random.random() < 0.9 else int(random.choice(left))
            )
    return triples


def interactions(users: int = 120, length: int = 12, *, seed: int = 0) -> Interactions:
    """The walks as interactions."""
    return Interactions.build("chain", chain(users, length, seed=seed))


def events(users: int = 80, length: int = 10, *, seed: int = 0) -> pl.DataFrame:
    """The walks as watch events: even titles are finished and liked, the others are left half way."""
    rows = []
    for user, title, time_s in chain(users, length, seed=seed):
        ts = int(time_s * 1000)
        good = int(title[1:]) % 2 == 0
        kinds = (
            [("play", 0.0), ("finish", 5400.0), ("thumbs_up", 5400.0)]
            if good
            else [("play", 0.0), ("progress", 2700.0)]
        )
        for step, (kind, position_s) in enumerate(kinds):
            rows.append(
                {"event_id": f"{user}-{title}-{kind}", "profile_id": user, "title_id": title, "kind": kind,
                 "ts": ts + step, "position_s": position_s, "duration_s": 5400.0, "request_id": None, "row": None,
                 "rank": None, "device": None, "region": None}
            )  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None).sort("ts", maintain_order=True)


def titles() -> list[Title]:
    """A catalogue: the genre says whether a title's number is even."""
    return [
        Title(title_id=f"t{n}", name=f"Title {n}", year=1990 + n % 30, genres=("Drama" if n % 2 else "Comedy",))
        for n in range(TITLES)
    ]
