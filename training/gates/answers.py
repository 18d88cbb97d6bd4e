"""What a recommend version answers to held-out starts: by the compiled graphs, through the code that serves requests.

Shapes: I starts, N rows of the catalogue, T titles of the catalogue.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from features.ranking import title_statistics
from serve.catalogue import Catalogue
from serve.memory import Acquaintance, Memory
from serve.pages import ESTIMATES
from serve.scoring import GROUP, RankingModel, Scorer
from training.gates.intervals import Floats, Integers
from training.gates.soundness import time_turns
from training.gates.starts import HeldOut

CUTOFF: Final = 10
DEEPEST: Final = 50
"""MRR counts targets down to this place."""

_FINISH, _THUMBS_UP = ESTIMATES.index("finish"), ESTIMATES.index("thumbs_up")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What one version answered.

    Attributes:
        version: whose.
        ranks: place of the title that was started, from 1; infinity where it is no candidate; float64 (I,).
        top: int64 (I, CUTOFF), titles by their place in the held-out catalogue; -1 where there are fewer.
        finish: float64 (I,), estimate for the title that was started; NaN where it is no candidate.
        thumbs_up: likewise.
        finite: whether every figure of every answer was.
    """

    version: str
    ranks: Floats
    top: Integers
    finish: Floats
    thumbs_up: Floats
    finite: bool

    @property
    def ndcg(self) -> Floats:
        """NDCG@10 of each start, 0 to 1."""
        gains: Floats = np.where(self.ranks <= CUTOFF, 1 / np.log2(self.ranks + 1), 0.0)
        return gains

    @property
    def hits(self) -> Floats:
        """HR@10 of each start, 0 or 1."""
        return (self.ranks <= CUTOFF).astype(np.float64)

    @property
    def reciprocal(self) -> Floats:
        """Reciprocal rank of each start, 0 beyond DEEPEST."""
        values: Floats = np.where(self.ranks <= DEEPEST, 1 / self.ranks, 0.0)
        return values


class Answerer:
    """A version over the held-out catalogue.

    Args:
        path: the artifact's folder.
        held: the starts.

    Raises:
        ArtifactError: it can't be served; names the field.
    """

    def __init__(self, path: Path, held: HeldOut) -> None:
        self._model = RankingModel.load(path, device="cpu")
        self.catalogue = Catalogue.build(held.titles, self._model.vocabulary)
        self._held = held
        self._memory = Memory(1)
        self._scorer = self._model.bind(self._model.table(self.catalogue), self._statistics(0))
        self._moment = 0

    @property
    def version(self) -> str:
        """Of the artifact."""
        return self._model.version

    def _statistics(self, moment: int) -> NDArray[np.float32]:
        known = self._held.statistics[moment] if self._held.statistics else {}
        return title_statistics([known.get(title_id) for title_id in self.catalogue.title_ids])

    def _at(self, moment: int) -> Scorer:
        if moment != self._moment:
            self._scorer, self._moment = self._scorer.rebind(self._statistics(moment)), moment
        return self._scorer

    def _asked(self, place: int) -> tuple[Acquaintance, NDArray[np.bool_]]:
        """Who asks, and what may be a candidate: what a page may show, and the title that was started."""
        features = self._held.features[place]
        who = self._memory.meet(features, self.catalogue)
        eligible = self.catalogue.available(features.stats.region, kids=features.stats.kids)
        eligible[who.viewer.watched] = False
        eligible[self.catalogue.rows[self._held.targets[place]]] = True
        return who, eligible

    def answer(self) -> Answers:
        """Answer all starts."""
        held, count = self._held, len(self._held)
        ranks, finish, thumbs_up = np.full(count, np.inf), np.full(count, np.nan), np.full(count, np.nan)
        top = np.full((count, CUTOFF), -1, dtype=np.int64)
        listed = {title.title_id: place for place, title in enumerate(held.titles)}
        codes = np.array([listed.get(title_id, -1) for title_id in self.catalogue.title_ids], dtype=np.int64)
        finite = True
        for places in _groups(held.moments):
            scorer = self._at(int(held.moments[places[0]]))
            states, masks, contexts = [], [], []
            for place in places:
                who, eligible = self._asked(place)
                states.append(scorer.encode(who.visits.tolist()))
                masks.append(eligible)
                contexts.append(who.context(int(held.times_ms[place])))
            rankings = scorer.rank(np.stack(states), np.stack(masks), np.stack(contexts))
            for place, state, ranking in zip(places, states, rankings, strict=True):
                finite &= bool(np.isfinite(state).all() and np.isfinite(ranking.values[:, :-1]).all())
                first = codes[ranking.rows[:CUTOFF]]
                top[place, : len(first)] = first
                found = np.flatnonzero(ranking.rows == self.catalogue.rows[held.targets[place]])
                if len(found):
                    ranks[place] = found[0] + 1
                    finish[place] = ranking.values[_FINISH, found[0]]
                    thumbs_up[place] = ranking.values[_THUMBS_UP, found[0]]
        return Answers(version=self.version, ranks=ranks, top=top, finish=finish, thumbs_up=thumbs_up, finite=finite)

    def once(self, place: int) -> None:
        """Answer one start alone, as its request would be; what a page keeps of a viewer is worked out, too."""
        scorer = self._at(int(self._held.moments[place]))
        who, eligible = self._asked(place)
        context = who.context(int(self._held.times_ms[place]))[None]
        scorer.rank(scorer.encode(who.visits.tolist())[None], eligible[None], context)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The champion over the held-out starts, for any number of candidates.

    Attributes:
        held: the starts.
        answerer: the champion.
        answers: what it answered.
    """

    held: HeldOut
    answerer: Answerer
    answers: Answers

    @classmethod
    def of(cls, path: Path, held: HeldOut) -> Self:
        """Let a champion answer.

        Args:
            path: the artifact's folder.
            held: the starts, at least one.

        Raises:
            ArtifactError: it can't be served; names the field.
        """
        answerer = Answerer(path, held)
        return cls(held=held, answerer=answerer, answers=answerer.answer())


def time_pair(
    candidate: Answerer, champion: Answerer, held: HeldOut, *, count: int, seed: int
) -> tuple[Floats, Floats]:
    """Seconds of both for the same starts: turn about, who is first changes, the best of a few tries each.

    Args:
        candidate: over the held-out catalogue.
        champion: likewise.
        held: the starts.
        count: starts whose answers are timed, at most.
        seed: of the starts that are drawn.

    Returns:
        Candidate's and champion's seconds (count,), or fewer.
    """
    random = np.random.default_rng(seed)
    places = np.sort(random.choice(len(held), min(count, len(held)), replace=False)).tolist()
    return time_turns(candidate.once, champion.once, places)


def _groups(moments: Sequence[int] | Integers) -> Iterator[list[int]]:
    """Places of starts that one call ranks: GROUP at most, of one moment."""
    group: list[int] = []
    for place, moment in enumerate(moments):
        if group and (len(group) == GROUP or moment != moments[group[0]]):
            yield group
            group = []
        group.append(place)
    if group:
        yield group
