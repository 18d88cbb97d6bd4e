"""The audience's taste shifts before your eyes: Playhead notices, retrains, tries what it made, and promotes it.

Then a poisoned version is pushed past its gate by force, and is rolled back by itself. The stack is one of its own, in
a folder of its own; the viewers are loadtests.browsing's, over HTTP like any player's. What is told is what the
service answers, nothing else.

How the taste shifts: who liked one genre likes another one from now on, everybody at once. What the champion knows of
who watches what after what is wrong then, until a version has learned it anew.
"""

import asyncio
import secrets
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from deployments import background
from deployments.candidates import BITRATE, MODEL, threads, train_and_settle
from deployments.demos.chart import Mark, render
from deployments.demos.poison import rank_backwards
from deployments.local import StackOptions
from deployments.progress import Reporter, advance, phase
from deployments.service import ask, token_header
from deployments.state import RunFolder, StackLock, already_up
from features.settings import Settings
from loadtests.browsing import Browsing, BrowsingSettings, Viewers, Visit
from serve.artifacts import CHAMPION, read_artifact, read_champion, set_champion
from serve.errors import InvalidInput, PlayheadError, Unavailable
from serve.gateway.rollouts import OPERATOR_HEADER, OPERATOR_VARIABLE
from serve.online.board import LEARNABLE
from serve.rollout.decisions import LEAST_VARIABLE
from training.datasets.dataset import Dataset, open_dataset
from training.datasets.synthetic import prepare_synthetic
from training.recommend.pipeline import train_recommend
from training.recommend.train import FitSettings

DATA: Final = "demo"
_FRAMES: Final = 2_000
_PRIOR: Final = 0.2
"""Of the audience's taste in each viewer's, in plays."""

_SHARPNESS: Final = 1.5
_POLL_S: Final = 1.0
_KIDS_GENRES: Final = ("Animation", "Family")
"""Genres that keep their viewers: kids have no others."""

Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningDemo:
    """How the demo runs.

    Attributes:
        home: its own folder; what was trained there before is used again.
        port: where its service listens.
        profiles: viewers.
        titles: of the catalogue.
        events: that they made before.
        epochs: of the first champion's training.
        pages_per_s: visits a second.
        warm_up_s: before the taste shifts.
        stage_s: that a stage of the rollout lasts at least.
        first_share: of the challenger.
        learn_events: plays since the drift that an update waits for.
        patience_s: longest wait for each thing that is to be shown.
        poison_share: of viewers who get the poisoned version.
        seed: of everything random.
    """

    home: Path
    port: int = 8000
    profiles: int = 20_000
    titles: int = 600
    events: int = 300_000
    epochs: int = 5
    pages_per_s: float = 50.0
    warm_up_s: float = 180.0
    stage_s: float = 60.0
    first_share: float = 0.1
    learn_events: int = 4_700
    patience_s: float = 1_200.0
    poison_share: float = 0.5
    seed: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What the stack is told besides our own environment."""
        return {
            LEAST_VARIABLE: f"{self.stage_s:g}",
            "PLAYHEAD_LEARN_DRIFT_EVENTS": f"{self.learn_events}",
            "PLAYHEAD_LEARN_REST_S": "0",
            "PLAYHEAD_LEARN_NEW_EVENTS": "0",
            "PLAYHEAD_LEARN_EVERY_S": "0",
            "PLAYHEAD_LEARN_FIRST_SHARE": f"{self.first_share:g}",
        }


@dataclass(slots=True)
class Story:
    """What happened so far.

    Attributes:
        marks: in order.
        report: what was to be shown -> seconds since the taste shifted; None: not yet.
    """

    marks: list[Mark] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def run(demo: LearningDemo, settings: Settings, reporter: Reporter, tell: Tell) -> dict[str, Any]:
    """Run the demo.

    Args:
        demo: how.
        settings: of the calling Playhead, whose bitrate policy is used if it has one.
        reporter: told of the stack's phases.
        tell: told of each thing that happens: seconds since the taste shifted, and in words.

    Returns:
        When what happened, in seconds since the shift (`drift_s`, `trained_s`, `gate_s`, `rollout_s`, `promoted_s`) and
        since the poisoned version began (`poison_rolled_back_s`); `plays`: share of pages with a play in each phase, by
        version; `visits`, `failed`; `html`: the chart's path.

    Raises:
        PlayheadError: something that was to be shown did not happen, or a request failed.
    """
    own = Settings.from_env({"PLAYHEAD_HOME": str(demo.home), "REDIS_URL": ""})
    with _ending_whole():
        return _run(demo, settings, own, reporter, tell)


def _run(demo: LearningDemo, settings: Settings, own: Settings, reporter: Reporter, tell: Tell) -> dict[str, Any]:
    dataset = _prepare(demo, settings, own, reporter)
    token = secrets.token_urlsafe(24)
    environment = {**demo.environment, OPERATOR_VARIABLE: token}
    state = background.start(own, StackOptions(port=demo.port, data=DATA), reporter, environment)
    try:
        service = Service(state.url, {OPERATOR_HEADER: token})
        return _show(demo, own, dataset, service, tell)
    finally:
        background.end(own, reporter)


@contextmanager
def _ending_whole() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that no stack is left; where signals can't be set, nothing changes."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Service:
    """What the running service says.

    Args:
        url: where it is.
        headers: of an operator.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url
        self._headers = dict(headers)

    def ask(self, what: str) -> dict[str, Any]:
        """GET /v1/models/recommend/`what`; empty while it does not answer."""
        try:
            return ask(self.url, f"/v1/models/{MODEL}/{what}")
        except PlayheadError:
            return {}

    def promote(self, version: str, share: float, *, force: bool, reason: str) -> None:
        """Begin a version's rollout.

        Raises:
            PlayheadError: it is refused.
        """
        body = {"version": version, "share": share, "force": force, "by": "demo", "reason": reason}
        ask(self.url, f"/v1/models/{MODEL}/promote", body, self._headers)


def _prepare(demo: LearningDemo, settings: Settings, own: Settings, reporter: Reporter) -> Dataset:
    """The audience's past, the model that learned from it, and a bitrate policy, where they are missing."""
    _begin_anew(own)
    path = own.datasets / DATA
    sizes = {"profiles": demo.profiles, "titles": demo.titles, "events": demo.events, "seed": demo.seed}
    told = " ".join(f"{name}={size}" for name, size in sizes.items())
    if path.is_dir() and told not in open_dataset(path).source:
        shutil.rmtree(path)
        shutil.rmtree(own.models / MODEL, ignore_errors=True)
    if not path.is_dir():
        prepare_synthetic(path, **sizes, as_of_ms=int(time.time() * 1000))
    policy = settings.models / BITRATE
    if policy.is_dir() and not (own.models / BITRATE).is_dir():
        shutil.copytree(policy, own.models / BITRATE)
    dataset = open_dataset(path)
    if read_champion(own.models, MODEL) is None:
        torch.set_num_threads(threads())
        with phase(reporter, "training", "the first champion") as found:
            artifact = train_recommend(
                path, own.models / MODEL, demo.seed, advance(reporter, "training"),
                settings=FitSettings(epochs=demo.epochs), most_frames=_FRAMES,
            )  # fmt: skip
            set_champion(own.models, MODEL, artifact.version)
            found.append(f"{MODEL} {artifact.version}")
    if read_champion(own.models, BITRATE) is None:
        train_and_settle(BITRATE, own, reporter, rounds=0, tracked=False)
    return dataset


def _begin_anew(own: Settings) -> None:
    """Forget what an earlier run did, but for the audience's past and the first champion.

    Raises:
        StackError: a demo runs in that folder.
    """
    holder = StackLock(RunFolder(own.home)).holder()
    if holder is not None:
        raise already_up(holder)
    first = read_champion(own.models, MODEL)
    kept = {own.datasets, own.models, own.datasets / DATA, own.models / BITRATE, own.models / MODEL}
    kept |= set() if first is None else {first, first.parent / CHAMPION}
    for folder in (own.home, own.datasets, own.models, own.models / MODEL):
        for path in folder.glob("*") if folder.is_dir() else ():
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def viewers_of(dataset: Dataset) -> Viewers:
    """Who browses: the data set's grown-up profiles, each with the taste that its plays show."""
    titles = dataset.frame("titles")
    genre_of = {row["title_id"]: row["genres"][0] for row in titles.iter_rows(named=True) if row["genres"]}
    genres = tuple(sorted(set(genre_of.values())))
    plays = (
        dataset.scan("events")
        .filter(pl.col("kind") == "play")
        .select("profile_id", "title_id", "device")
        .collect()
        .with_columns(genre=pl.col("title_id").replace_strict(genre_of, default=None))
        .drop_nulls("genre")
    )
    profiles = dataset.frame("profiles").filter(~pl.col("kids").fill_null(value=False))
    places = {profile: place for place, profile in enumerate(profiles["profile_id"].to_list())}
    taste = np.zeros((len(places), len(genres)))
    counts = plays.group_by("profile_id", "genre").len()
    for profile, genre, count in counts.iter_rows():
        if profile in places:
            taste[places[profile], genres.index(genre)] = count
    taste = (taste + _PRIOR * taste.sum(axis=0) / max(taste.sum(), 1.0)) ** _SHARPNESS
    used = plays.drop_nulls("device").group_by("profile_id").agg(pl.col("device").mode().sort().first())
    device_of = dict(used.iter_rows())
    popular = plays.group_by("genre", "title_id").len().sort("len", descending=True)
    found = {genre: popular.filter(pl.col("genre") == genre)["title_id"].to_list() for genre in genres}
    return Viewers(
        profiles=list(places), regions=profiles["region"].fill_null("us").to_list(),
        devices=[device_of.get(profile, "tv") for profile in places], genres=genres,
        taste=taste / taste.sum(axis=1, keepdims=True), titles=found,
    )  # fmt: skip


def moves_of(viewers: Viewers, seed: int) -> list[int]:
    """Which genre each genre's viewers move to: a cycle through all but those for kids, in an order drawn by `seed`."""
    movable = [place for place, genre in enumerate(viewers.genres) if genre not in _KIDS_GENRES]
    order = np.random.default_rng(seed).permutation(movable).tolist()
    moves = list(range(len(viewers.genres)))
    for place, genre in enumerate(order):
        moves[genre] = order[(place + 1) % len(order)]
    return moves


class Crowd:
    """The viewers, in a thread of their own.

    Args:
        demo: how many come.
        url: of the service.
        viewers: who they are.
    """

    def __init__(self, demo: LearningDemo, url: str, viewers: Viewers) -> None:
        settings = BrowsingSettings(
            url=url, pages_per_s=demo.pages_per_s, seed=demo.seed, headers=token_header()
        )  # fmt: skip
        self.browsing = Browsing(settings, viewers)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.began_s = 0.0

    @contextmanager
    def visiting(self) -> Iterator["Crowd"]:
        """They come while the block runs."""
        self.began_s = time.monotonic()
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(30.0)

    def check(self) -> None:
        """Whether they still come.

        Raises:
            Unavailable: they ceased to.
        """
        if self._error is not None or not self._thread.is_alive():
            raise Unavailable(
                field="viewers", got=repr(self._error), expected="viewers that come to the end",
                next_step="Run the demo again; see the service's log.",
            ) from self._error  # fmt: skip

    def _work(self) -> None:
        try:
            asyncio.run(self.browsing.run(self._stop.is_set))
        except Exception as error:  # noqa: BLE001 - told by check
            self._error = error


class _Director:
    """Goes through the story, and tells it."""

    def __init__(self, demo: LearningDemo, service: Service, crowd: Crowd, tell: Tell) -> None:
        self.demo, self.service, self.crowd = demo, service, crowd
        self._tell = tell
        self.story = Story()
        self.shifted_s, self.shifted_ms = demo.warm_up_s, 0
        self._steps: set[tuple[str, str, str]] = set()
        self._changes: set[int] = set()
        self.began_ms = int(time.time() * 1000)

    def now_s(self) -> float:
        """Seconds since the crowd began."""
        return time.monotonic() - self.crowd.began_s

    def note(self, text: str, label: str = "", key: str = "") -> None:
        """Tell something that happened now."""
        at_s = self.now_s()
        self.story.marks.append(Mark(at_s=at_s, text=text, label=label))
        if key and self.story.report.get(key) is None:
            self.story.report[key] = round(at_s - self.shifted_s, 1)
        self._tell(at_s - self.shifted_s, text)

    def wait(self, what: str, happened: Callable[[], bool], within_s: float | None = None) -> None:
        """Watch the service until something happened.

        Raises:
            Unavailable: it did not in time.
        """
        until_s = time.monotonic() + (within_s or self.demo.patience_s)
        while True:
            self.crowd.check()
            self.look()
            if happened():
                return
            if time.monotonic() > until_s:
                raise Unavailable(
                    field=what, got=f"not within {within_s or self.demo.patience_s:g} s", expected="that it happens",
                    next_step=f"See the logs in {self.demo.home / 'logs'}.",
                )  # fmt: skip
            time.sleep(_POLL_S)

    def look(self) -> None:
        """Tell what the service did since the last look."""
        for step in reversed(self.service.ask("learning?limit=50").get("steps", [])):
            known = (step["update"], step["name"], step["moment"])
            if known in self._steps or step["ts"] < self.began_ms:
                continue
            self._steps.add(known)
            if step["moment"] != "begun" or step["name"] == "update":
                key = {"training": "trained_s", "gate": "gate_s", "rollout": "rollout_s"}.get(step["name"], "")
                done = step["moment"] == "done"
                label = {"update": "update", "gate": "gate"}.get(step["name"], "") if done or not key else ""
                self.note(
                    f"{step['name']} {step['moment']}: {step['text']}", label if done else "", key if done else ""
                )
        for change in reversed(self.service.ask("changes?limit=50").get("changes", [])):
            plan = change["plan"]
            if plan["revision"] in self._changes or change["ts"] < self.began_ms:
                continue
            self._changes.add(plan["revision"])
            who = f"{plan['challenger']} answers {plan['share']:.0%}" if plan["challenger"] else "no challenger"
            label = change["action"] if change["action"] == "rollback" else f"{plan['share'] or 1:.0%}"
            self.note(
                f"{change['action']} by {change['by']}: champion {plan['champion']}, {who}. {change['reason']}", label
            )

    def plan(self) -> dict[str, Any]:
        """The plan as the service has it; empty while it does not answer."""
        found: dict[str, Any] = self.service.ask("rollout").get("plan", {})
        return found


def _show(demo: LearningDemo, own: Settings, dataset: Dataset, service: Service, tell: Tell) -> dict[str, Any]:
    """The story, from the first viewer to the last."""
    viewers = viewers_of(dataset)
    crowd = Crowd(demo, service.url, viewers)
    with crowd.visiting():
        director = _Director(demo, service, crowd, tell)
        report = director.story.report
        first = director.plan()["champion"]
        director.note(f"{len(viewers.profiles):,} viewers, {demo.pages_per_s:g} visits a second; champion {first}")
        director.wait("warm-up", lambda: director.now_s() >= demo.warm_up_s, demo.warm_up_s + 60)
        director.shifted_s, director.shifted_ms = director.now_s(), int(time.time() * 1000)
        crowd.browsing.viewers = viewers.shifted(moves_of(viewers, demo.seed))
        director.note("the taste shifts: who liked one genre likes another from now on", "taste shifts")

        def drifting() -> bool:
            signals = [one for one in service.ask("drift").get("signals", []) if _is_news(one, director.shifted_ms)]
            if signals:
                told = ", ".join(f"{one['name']} {one['value']:.2f} ({one['kind']})" for one in signals)
                director.note(f"drift noticed: {told}", "drift", "drift_s")
            return bool(signals)

        director.wait("drift", drifting)
        director.wait("rollout", lambda: director.plan().get("challenger") is not None)
        second = director.plan()["challenger"]
        director.wait("promotion", lambda: director.plan().get("champion") == second)
        director.note(f"{second} is the champion", "promoted", "promoted_s")
        promoted_s = director.now_s()
        director.wait("settling", lambda: director.now_s() >= promoted_s + demo.stage_s, demo.stage_s + 60)
        poison = rank_backwards(read_artifact(own.models / MODEL / second)).version
        _refused(service, poison, director)
        service.promote(poison, demo.poison_share, force=True, reason="pushed past the gate")
        poisoned_s = director.now_s()
        director.wait("roll-back", lambda: director.plan().get("challenger") is None)
        report["poison_rolled_back_s"] = round(director.now_s() - poisoned_s, 1)
        end_s = director.now_s()
        director.wait("end", lambda: director.now_s() >= end_s + demo.stage_s / 2, demo.stage_s + 60)
    return _report(demo, director, {first: "first champion", second: "retrained", poison: "poisoned"}, poisoned_s)


def _is_news(signal: Mapping[str, Any], after_ms: int) -> bool:
    """Whether a signal of drift began after a time, and is one that learning may mend."""
    since_ts = signal["since_ts"]
    return signal["name"] in LEARNABLE and since_ts is not None and since_ts >= after_ms and not signal["from_start"]


def _refused(service: Service, poison: str, director: _Director) -> None:
    """Without force the version is refused."""
    try:
        service.promote(poison, director.demo.poison_share, force=False, reason="looks fine to me")
    except PlayheadError as error:
        director.note(f"a poisoned version, {poison}, is refused: {error.got}", "poison")
        return
    raise InvalidInput(
        field="promote", got=f"{poison} is tried", expected="a refusal: its gate did not pass",
        next_step="See serve/gateway/rollouts.py.",
    )  # fmt: skip


def _report(demo: LearningDemo, director: _Director, names: Mapping[str, str], poisoned_s: float) -> dict[str, Any]:
    """What happened, written as a page, and as figures."""
    visits, report = list(director.crowd.browsing.visits), director.story.report
    path = demo.home / "demo-learn.html"
    title = "The audience's taste shifts, and the model follows"
    path.write_text(render(title, visits, director.story.marks, names), encoding="utf-8")
    shifted_s, promoted_s = director.shifted_s, director.shifted_s + report["promoted_s"]
    phases = {
        "before": (0.0, shifted_s), "after the shift": (shifted_s, shifted_s + report["rollout_s"]),
        "while tried": (shifted_s + report["rollout_s"], promoted_s), "after the promotion": (promoted_s, poisoned_s),
        "poisoned": (poisoned_s, poisoned_s + report["poison_rolled_back_s"]),
    }  # fmt: skip
    report["plays"] = {name: _plays(visits, names, *span) for name, span in phases.items()}
    failures = Counter(visit.error for visit in visits if visit.error)
    report |= {"visits": len(visits), "failed": sum(failures.values()), "failures": dict(failures), "html": str(path)}
    report["degraded"] = sum(visit.degraded for visit in visits)
    return report


def _plays(visits: list[Visit], names: Mapping[str, str], from_s: float, to_s: float) -> dict[str, Any]:
    """Share of pages that led to a play, by version."""
    found: dict[str, list[bool]] = {}
    for visit in visits:
        if visit.version and from_s <= visit.at_s < to_s:
            found.setdefault(names.get(visit.version, visit.version), []).append(visit.played)
    return {name: {"pages": len(one), "plays": round(sum(one) / len(one), 4)} for name, one in found.items()}
