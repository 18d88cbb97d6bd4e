"""The recommender's gate: candidate and champion on the same starts, later than what either was trained on.

Both answer as a request would be answered (answers.py). Units: *_ms UTC milliseconds. Shapes: I starts.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from features.titles import content_features
from serve.artifacts import Artifact, read_table
from serve.clock import utc
from serve.errors import ArtifactError
from training.datasets.dataset import Dataset
from training.gates.answers import Answerer, Answers, Reference, time_pair
from training.gates.calibration import HEADS, check_calibration
from training.gates.exposed import check_exposures
from training.gates.feedback import count_feedback
from training.gates.hearing import Hearing
from training.gates.intervals import Interval, mean
from training.gates.noninferiority import Margin, is_better, judge
from training.gates.soundness import (
    check_changed,
    check_graphs,
    check_lineage,
    check_size,
)
from training.gates.starts import HeldOut, held_out
from training.gates.verdict import Check, Comparison, Curve, Verdict
from training.recommend.export import FEATURE_SERVICE

OWN_METRICS: Final = ("served_final_ndcg@10", "ndcg@10")
"""Of a manifest: what training measured on its own test starts; the first that is there counts."""

_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, kw_only=True)
class RecommendSettings:
    """What is asked of a recommender.

    Attributes:
        margin: of NDCG@10 overall and in slices, and of HR@10 and MRR, as shares of the champion's.
        least_starts: with fewer nothing is compared.
        least_profiles: likewise.
        most_starts: about as many are answered; whole profiles are drawn where there are more.
        oldest_ms: how long before the cut a candidate's data may end.
        leak: times what its own test measured that a candidate may reach on held-out starts, surely.
        coverage: share of the champion's coverage that a candidate must reach.
        novelty: bits of mean self-information of what is recommended that may be lost.
        known: share of the champion's share of known live titles that a candidate must know.
        timed: starts whose answers are timed.
        seed: of all that is drawn.
    """

    margin: Margin = field(default_factory=lambda: Margin(overall=0.05, slices=0.15))
    least_starts: int = 300
    least_profiles: int = 50
    most_starts: int = 4000
    oldest_ms: int = 7 * 24 * _HOUR_MS
    leak: float = 1.5
    coverage: float = 0.5
    novelty: float = 1.0
    known: float = 0.9
    timed: int = 120
    seed: int = 0


def cut_of(candidate: Artifact, champion: Artifact) -> int:
    """The first moment that neither was trained on, UTC milliseconds; 0 where lineages don't tell."""
    ends = [artifact.manifest.lineage.last_ts_ms for artifact in (candidate, champion) if artifact.manifest.lineage]
    return max(ends, default=-1) + 1


def gate_recommend(
    candidate: Artifact,
    champion: Artifact,
    dataset: Dataset,
    *,
    cut_ms: int | None = None,
    settings: RecommendSettings | None = None,
    reference: Reference | None = None,
    home: Path | None = None,
) -> Verdict:
    """Ask whether a candidate may go on.

    Args:
        candidate: the artifact.
        champion: the artifact that it would replace.
        dataset: events that hold both versions' histories and what happened after the cut.
        cut_ms: starts from then on are held out; None: after both lineages' newest event.
        settings: what is asked.
        reference: the champion's answers, where they are there already; None: they are made.
        home: where logged exposures and people's feedback may lie; None: they are not looked at.

    Raises:
        InvalidData: the data set's events can't be used.
        ArtifactError: the champion can't be served.
    """
    settings = settings or RecommendSettings()
    cut_ms = cut_of(candidate, champion) if cut_ms is None else cut_ms
    checks = [
        check_lineage(candidate, timed=True),
        _check_cut(candidate, champion, cut_ms),
        _check_freshness(candidate, champion, cut_ms, settings),
        _check_features(candidate),
        *check_graphs(candidate),
        check_size(candidate, champion),
    ]
    facts: dict[str, Any] = {"dataset": dataset.name, "snapshot": dataset.snapshot, "cut_ms": cut_ms}
    hearing = Hearing(candidate=candidate, champion=champion, checks=checks, facts=facts)

    if not hearing.is_sound:
        return hearing.verdict()
    held = (
        reference.held if reference
        else held_out(dataset, cut_ms, most=settings.most_starts, seed=settings.seed)
    )  # fmt: skip
    facts |= {"starts": len(held), "profiles": held.profiles, "found_starts": held.found, "seed": settings.seed}
    checks += check_vocabulary(candidate, champion, held, settings)
    enough = _check_enough(held, settings)
    checks.append(enough)
    if not enough.passed:
        return hearing.verdict()
    try:
        ours = Answerer(candidate.path, held)
    except ArtifactError as error:
        return hearing.refused("serving", error)
    reference = reference or Reference.of(champion.path, held)
    mine, other = ours.answer(), reference.answers
    same = np.array_equal(mine.top, other.top) and np.array_equal(mine.ranks, other.ranks)
    checks.append(check_changed(candidate, champion, same_answers=same))
    checks.append(_check_finite(mine))
    compared, comparisons = _compare(mine, other, held, settings)
    checks += [*compared, *_check_spread(mine, other, held, settings)]
    checks.append(_check_leak(candidate, champion, mine, other, held, settings))
    curves: list[Curve] = []
    for head in HEADS:
        check, drawn = check_calibration(head, mine, other, held, seed=settings.seed)
        checks.append(check)
        curves += drawn
    if home is not None:
        exposed, told = check_exposures(home, candidate, champion, dataset, cut_ms)
        checks += exposed
        facts |= told | {"feedback": count_feedback(home)}
    seconds = time_pair(ours, reference.answerer, held, count=settings.timed, seed=settings.seed)
    hearing.time(*seconds, settings.seed)
    return hearing.verdict(
        comparisons=tuple(comparisons), curves=tuple(curves), better=not same and is_better(comparisons[0]),
    )  # fmt: skip


def _compare(
    mine: Answers, other: Answers, held: HeldOut, settings: RecommendSettings
) -> tuple[list[Check], list[Comparison]]:
    """NDCG@10 overall and by slice; HR@10 and MRR overall."""
    return judge(
        "ndcg@10", mine.ndcg, other.ndcg, held.units, held.slices, settings.margin, unit="profiles",
        others={"hr@10": (mine.hits, other.hits), "mrr": (mine.reciprocal, other.reciprocal)},
    )  # fmt: skip


def _check_finite(mine: Answers) -> Check:
    text = "all answers are finite" if mine.finite else "some answers hold NaN or infinity"
    return Check(name="finite answers", passed=mine.finite, measured=float(not mine.finite), bound=0.0, text=text)


def _check_enough(held: HeldOut, settings: RecommendSettings) -> Check:
    passed = len(held) >= settings.least_starts and held.profiles >= settings.least_profiles
    return Check(
        name="held-out starts", passed=passed, measured=float(len(held)), bound=float(settings.least_starts),
        text=f"{len(held)} starts of {held.profiles} profiles from {utc(held.cut_ms)} on; at least "
        f"{settings.least_starts} of {settings.least_profiles} are needed"
        + ("" if passed else ": wait for more events, or train on data that ends earlier"),
    )  # fmt: skip


def _check_cut(candidate: Artifact, champion: Artifact, cut_ms: int) -> Check:
    """Whether the candidate was trained on nothing from the cut on, and the champion neither."""
    late = [
        f"{who} {artifact.version} on events up to {utc(artifact.manifest.lineage.last_ts_ms)}"
        for who, artifact in (("candidate", candidate), ("champion", champion))
        if artifact.manifest.lineage is not None and artifact.manifest.lineage.last_ts_ms >= cut_ms
    ]
    newest = candidate.manifest.lineage.last_ts_ms if candidate.manifest.lineage else 0
    return Check(
        name="leakage: lineage", passed=not late, measured=float(newest), bound=float(cut_ms),
        text=f"trained on what is held out from {utc(cut_ms)}: {'; '.join(late)}" if late
        else f"trained on nothing from the cut on ({utc(cut_ms)})",
    )  # fmt: skip


def _check_leak(
    candidate: Artifact, champion: Artifact, mine: Answers, other: Answers, held: HeldOut, settings: RecommendSettings
) -> Check:
    """Whether the candidate does far better on held-out starts than its own test said: it has seen them, then.

    The champion tells how much of that is the data's: where it, too, does better than its own test said, so may the
    candidate.
    """
    name = "leakage: score"
    own, own_champion = _own_metric(candidate), _own_metric(champion)
    if own is None:
        return Check(
            name=name, passed=False, text=f"the manifest lacks {' and '.join(OWN_METRICS)}: nothing to hold it against"
        )
    found = _over(mean(mine.ndcg, held.units), own)
    usual = max(float(other.ndcg.mean()) / own_champion, 1.0) if own_champion else 1.0
    bound = settings.leak * usual
    return Check(
        name=name, passed=found.low <= bound, measured=found.low, bound=bound,
        text=f"NDCG@10 on held-out starts is {found.value:.2f} times its own test's ({found.low:.2f} to "
        f"{found.high:.2f}); surely above {bound:.2f} would mean that it has seen them",
    )  # fmt: skip


def _over(one: Interval, by: float) -> Interval:
    return Interval(
        value=one.value / by, low=one.low / by, high=one.high / by, error=one.error / by, items=one.items,
        units=one.units,
    )  # fmt: skip


def _own_metric(artifact: Artifact) -> float | None:
    metrics = artifact.manifest.metrics
    found = [metrics.get(name) for name in OWN_METRICS]
    values = [float(value) for value in found if isinstance(value, int | float) and value > 0]
    return values[0] if values else None


def _check_freshness(candidate: Artifact, champion: Artifact, cut_ms: int, settings: RecommendSettings) -> Check:
    """Whether the candidate's data reach near the cut, and are no older than the champion's."""
    ends = [
        artifact.manifest.lineage.last_ts_ms if artifact.manifest.lineage else 0 for artifact in (candidate, champion)
    ]
    age_ms = cut_ms - ends[0]
    older = ends[0] < ends[1]
    return Check(
        name="freshness", passed=age_ms <= settings.oldest_ms and not older, measured=age_ms / _HOUR_MS,
        bound=settings.oldest_ms / _HOUR_MS,
        text=f"its data end {age_ms / _HOUR_MS:.1f} h before the held-out starts, may be "
        f"{settings.oldest_ms / _HOUR_MS:g} h" + ("; the champion's are newer" if older else ""),
    )  # fmt: skip


def _check_features(candidate: Artifact) -> Check:
    """Whether it is fed by the feature service that serving reads."""
    service = candidate.manifest.feature_service
    return Check(
        name="feature service",
        passed=service == FEATURE_SERVICE,
        text=f"trained for {service or 'no feature service'}, serving reads {FEATURE_SERVICE}",
    )


def check_vocabulary(
    candidate: Artifact, champion: Artifact, held: HeldOut, settings: RecommendSettings
) -> list[Check]:
    """Whether the vocabulary knows the catalogue, and its rows are those that the weights were fitted to.

    The export's example of the graph `titles` holds the content features of every row, as training had them: a row
    whose title has other content now belongs to another title. Titles with no content tell nothing.

    Args:
        candidate: the candidate.
        champion: the champion.
        held: whose catalogue is the live one.
        settings: what is asked.
    """
    live = {title.title_id: title for title in held.titles}
    shares = [len(live.keys() & set(_vocabulary(artifact))) / len(live) for artifact in (candidate, champion)]
    least = settings.known * shares[1]
    known = Check(
        name="vocabulary", passed=shares[0] >= least, measured=shares[0], bound=least,
        text=f"knows {shares[0]:.1%} of {len(live)} live titles, the champion {shares[1]:.1%}; must be {least:.1%}",
    )  # fmt: skip
    rows = _vocabulary(candidate)
    inputs, _ = candidate.example("titles")
    placed = [(row, live[title_id]) for title_id, row in rows.items() if title_id in live and row < len(inputs["ids"])]
    fitted = inputs["content"][[row for row, _ in placed]] if placed else np.zeros((0, 1), np.float32)
    now = content_features([title for _, title in placed]) if placed else fitted
    telling = (fitted != 0).any(axis=1) & (now != 0).any(axis=1)
    equal = np.all(np.isclose(fitted, now, atol=1e-5), axis=1)
    same = float(equal[telling].mean()) if telling.any() else 1.0
    return [
        known,
        Check(
            name="vocabulary rows", passed=same >= settings.known, measured=same, bound=settings.known,
            text=f"{same:.1%} of {int(telling.sum())} rows hold the title that they were fitted to, by its content"
            + ("" if same >= settings.known else ": the table's order is not that of the weights"),
        ),
    ]  # fmt: skip


def _vocabulary(artifact: Artifact) -> dict[str, int]:
    table = read_table(artifact, "vocabulary")
    return dict(zip(table["title_id"].to_pylist(), table["row"].to_pylist(), strict=True))


def _check_spread(mine: Answers, other: Answers, held: HeldOut, settings: RecommendSettings) -> list[Check]:
    """Coverage (share of titles that anybody is recommended) and novelty (mean bits of what is recommended)."""
    floor = 0.5 / max(len(held.titles), 1)
    bits = np.array([-np.log2(max(held.shares.get(title.title_id, 0.0), floor * 1e-2)) for title in held.titles])
    covered, novel = [], []
    for answers in (mine, other):
        shown = answers.top[answers.top >= 0]
        covered.append(len(np.unique(shown)) / len(held.titles))
        novel.append(float(bits[shown].mean()) if len(shown) else 0.0)
    least, lost = settings.coverage * covered[1], novel[1] - novel[0]
    return [
        Check(
            name="coverage@10", passed=covered[0] >= least, measured=covered[0], bound=least,
            text=f"{covered[0]:.1%} of the titles are recommended to somebody, the champion's {covered[1]:.1%}; must "
            f"be {least:.1%}",
        ),
        Check(
            name="novelty@10", passed=lost <= settings.novelty, measured=lost, bound=settings.novelty,
            text=f"what is recommended tells {novel[0]:.2f} bits, the champion's {novel[1]:.2f}; may be "
            f"{settings.novelty:g} fewer",
        ),
    ]  # fmt: skip
