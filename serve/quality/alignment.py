"""What differs between a distorted clip and its reference, found from the first seconds of both.

Scale, place, bars, colour range, rate and start are found and corrected, each listed in words; what can't be corrected
is refused with what it is. Where the evidence does not tell (a still picture), nothing is moved and a note says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from serve.errors import InvalidInput
from serve.quality.beginnings import Beginning, read_beginning
from serve.quality.geometry import TURNS, Area, Fit, Stack, candidates, grid, refine, residual
from serve.quality.media import Limits, VideoFacts, probe
from serve.quality.offsets import MOST_OFFSET, Grams, Offset, OffsetSearch, drift, in_words
from serve.quality.placement import Placement, common_areas, placements, sharpen, verified_bars, within

_STUDIED_FRAMES: Final = 90
"""Of the slower clip, beyond the greatest offset, in the first look."""
_LOOKS: Final = (1.0, 3.0)
"""Times that many, until the offset is clear."""
_COARSE: Final = 64
_MIDDLE: Final = 128
_FINE: Final = 256
"""Columns of the grids that pictures are compared on."""
_ALIKE: Final = 0.75
"""Least correlation of pictures of the same content."""
_SURE: Final = 0.97
"""Correlation from which no mirroring is looked for."""
_FAINT: Final = 10.0
"""The same below which harsh compression may leave nothing of it."""
_AS_GOOD: Final = 1.25
"""Times the least unexplained variance up to which a plainer placement is taken: compression alone bends a fit."""
_FLAT: Final = 4.0
"""Luma steps (root mean square within pictures) below which there is nothing to compare."""
_MOVING: Final = 2.0
"""Luma steps of movement from which a poor agreement of what moves is a contradiction."""
_AGREED: Final = 0.5
_SQUEEZED: Final = 0.02
"""Difference of display aspect that encoders' rounding of sizes explains."""
_RANGES: Final = {
    (1.0, 0.0): "",
    (
        255 / 219,
        -16 * 255 / 219,
    ): "distorted luma is limited range (16 to 235) where the reference's is full (0 to 255)",
    (219 / 255, 16.0): "distorted luma is full range (0 to 255) where the reference's is limited (16 to 235)",
}
"""Gain and offset that undo it -> what was done."""


class Misaligned(InvalidInput):
    """Two clips that can't be compared frame by frame."""

    title = "Misaligned clips"


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a distorted clip is brought onto its reference.

    Attributes:
        reference: facts of the reference.
        distorted: facts of the distorted clip.
        late_s: how much later the distorted clip starts: its time t is the reference's t + late_s.
        scaled: width and height that distorted pictures are scaled to as a whole, pixels.
        reference_area: part of the reference's pictures that is compared.
        distorted_area: part of the scaled distorted pictures, of the same size.
        gain: that distorted luma is multiplied by, after scaling.
        lift: that is then added, 8-bit steps.
        corrections: all that is corrected, in words.
        notes: what else a reader of the scores should know.
    """

    reference: VideoFacts
    distorted: VideoFacts
    late_s: float
    scaled: tuple[int, int]
    reference_area: Area
    distorted_area: Area
    gain: float
    lift: float
    corrections: tuple[str, ...]
    notes: tuple[str, ...]


def align(reference: Path, distorted: Path, limits: Limits) -> Alignment:
    """Find how a distorted clip lies over its reference, in time and picture.

    Args:
        reference: the clip as it should be.
        distorted: an encode of it.
        limits: of reading either.

    Raises:
        NotFound: there is no such file.
        InvalidInput: a file can't be measured, see `media.probe` and `media.decode`.
        Misaligned: different content, an offset beyond MOST_OFFSET frames, mirrored, rotated or squeezed pictures, or
            clocks that run apart.
    """
    facts = (probe(reference, limits), probe(distorted, limits))
    rates = (facts[0].frames_per_s, facts[1].frames_per_s)
    span_s = float(MOST_OFFSET / rates[0] + _STUDIED_FRAMES / min(rates))
    for look in _LOOKS:
        one, other = (
            read_beginning(path, fact, limits, look * span_s)
            for path, fact in zip((reference, distorted), facts, strict=True)
        )
        comparison = _Comparison(facts, one, other, distorted.name)
        if not comparison.offset.rivals or (one.ended and other.ended):
            break
    return comparison.conclude((reference, distorted), limits)


class _Comparison:
    """Two beginnings over each other.

    Args:
        facts: of the reference and the distorted clip.
        one: the reference's beginning.
        other: the distorted clip's.
        name: of the distorted clip, for messages.
    """

    def __init__(self, facts: tuple[VideoFacts, VideoFacts], one: Beginning, other: Beginning, name: str) -> None:
        self._facts = facts
        self._stacks = (one.stack, other.stack)
        self._times = (one.times_s, other.times_s)
        self._rates = (facts[0].frames_per_s, facts[1].frames_per_s)
        self._name = name
        self._notes: list[str] = []
        self._blank = _detail(one.stack) < _FLAT
        self._fit, self._likeness = self._best_fit(other.stack)
        self._blank = self._blank or self._drowned()
        self._check_turned()
        first = self._search(self._fit, _MIDDLE, (1.0, 0.0)).search(0 if self._blank else None)
        self.placement = self._placed(first.steps)
        self.range = self._best_range(first.steps)
        self._offsets = self._search(self.placement.fit, _MIDDLE, self.range)
        self.offset = self._offsets.search(0 if self._blank else None)

    def conclude(self, paths: tuple[Path, Path], limits: Limits) -> Alignment:
        """The alignment, or why there is none."""
        self._check_content()
        facts, placement = self._facts, self.placement
        if not placement.plain:
            left, right = self._chosen(self.offset.steps, 3, early=True)
            placement = sharpen(paths, facts, limits, placement, (left, right), self.range)
        self._check_aspect(placement)
        areas = common_areas(placement, (facts[0].width, facts[0].height))
        if areas is None:
            raise self._misaligned("pictures that share no area", "pictures of the same scene")
        left, right = self._chosen(self.offset.steps, 12)
        pictures = (self._stacks[0].take(left), self._stacks[1].take(right))
        areas, bars = verified_bars(pictures, placement, areas, self.range)
        if min(areas[0].width, areas[0].height) < 16:
            raise self._misaligned(f"a common picture of {areas[0].width}x{areas[0].height}", "a larger one")
        late_s = self.offset.steps / float(max(self._rates))
        corrections = [
            *self._rate_words(), *self._offset_words(late_s), *placement.words(facts), *bars, *self._range_words(),
        ]  # fmt: skip
        if facts[0].bit_depth != facts[1].bit_depth:
            corrections.append(f"{facts[1].bit_depth} against {facts[0].bit_depth} bits: both are taken in 8-bit steps")
        self._note_overlap(late_s)
        return Alignment(
            reference=facts[0], distorted=facts[1], late_s=late_s, scaled=placement.scaled, reference_area=areas[0],
            distorted_area=areas[1], gain=self.range[0], lift=self.range[1], corrections=tuple(corrections),
            notes=tuple(self._notes),
        )  # fmt: skip

    def _best_fit(self, distorted: Stack, *, plain: bool = False) -> tuple[Fit, float]:
        """The way the pictures lie over each other that fits best at its best offset, and its correlation."""
        facts = self._facts
        aspect = float(facts[0].sample_aspect / facts[1].sample_aspect)
        search = OffsetSearch(_NO_GRAMS, *self._times, *self._rates)
        paired = [search.pairs(steps) for steps in range(-search.most_steps, search.most_steps + 1)]
        longest = max(len(left) for left, _ in paired)
        paired = [pairs for pairs in paired if len(pairs[0]) >= max(1, longest // 2)]
        best: tuple[Fit, float] | None = None
        one, other = self._stacks[0].halved(), distorted.halved()
        for kind, fit in candidates(one, other, aspect):
            if kind in {"crop", "cut"} and (plain or (best is not None and best[1] > 0.93)):
                break
            if kind == "cut" and best is not None and best[1] > 0.85:
                break
            score = _likeness(one, other, fit, paired, 4 if kind in {"whole", "bars"} else 8)
            # a plainer way wins where it leaves hardly more unexplained
            if best is None or 1 - score < 0.85 * (1 - best[1]) - 0.002:
                best = (fit, score)
        assert best is not None
        return best

    def _drowned(self) -> bool:
        """Whether a faint picture may be the reference's, its detail lost: nearer to it than another would be."""
        detail = _detail(self._stacks[0])
        if self._likeness >= _ALIKE or detail >= _FAINT:
            return False
        search = self._search(next(candidates(*self._stacks, 1.0))[1], _MIDDLE, (1.0, 0.0))
        return bool(search.differences(*search.pairs(0)).mean() < (1.1 * detail) ** 2)

    def _check_turned(self) -> None:
        if self._likeness >= _SURE or self._blank:
            return
        for how in TURNS:
            _, score = self._best_fit(self._stacks[1].turned(how), plain=True)
            if score > max(0.85, self._likeness + 0.4 * (1 - self._likeness)):
                raise self._misaligned(
                    f"a picture that is {how} (turned back it agrees by {score:.2f}, now by {self._likeness:.2f})",
                    "the reference's orientation", "Undo it in the encoder's filters, or its rotation metadata.",
                )  # fmt: skip

    def _search(self, fit: Fit, columns: int, luma_map: tuple[float, float]) -> OffsetSearch:
        shape = grid(fit, columns)
        one = self._stacks[0].sample(fit.across.reference, fit.down.reference, shape)
        other = self._stacks[1].sample(fit.across.distorted, fit.down.distorted, shape)
        grams = Grams.of(one, np.float32(luma_map[0]) * other + np.float32(luma_map[1]))
        return OffsetSearch(grams, *self._times, *self._rates)

    def _chosen(self, steps: int, most: int, *, early: bool = False) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Some pairs of an offset with much detail, spread out, or early ones."""
        left, right = OffsetSearch(_NO_GRAMS, *self._times, *self._rates).pairs(steps)
        if early:
            left, right = left[:60], right[:60]
        detail = self._stacks[0].pictures[left].astype(np.float32).std(axis=(1, 2))
        blocks = np.array_split(np.arange(len(left)), min(most, len(left)))
        at = np.array([block[np.argmax(detail[block])] for block in blocks], np.intp)
        return left[at], right[at]

    def _placed(self, steps: int) -> Placement:
        """The fit made exact, and snapped to the sizes that were likely meant."""
        facts = self._facts
        left, right = self._chosen(steps, 12)
        one, other = self._stacks[0].take(left), self._stacks[1].take(right)
        fit = refine(one, other, self._fit, grid(self._fit, _COARSE))
        fit = refine(one, other, fit, grid(fit, _FINE))
        shape = grid(self._fit, _FINE)
        least = residual(one, other, fit, shape)
        if least > residual(one, other, self._fit, shape):
            fit, least = self._fit, residual(one, other, self._fit, shape)
        possible = placements(fit, self._fit, facts, self._stacks)
        if self._blank:
            return possible[0]
        for placement in possible:
            if residual(one, other, within(placement, fit), shape) < _AS_GOOD * least + 0.0005:
                return placement
        return possible[-1]

    def _best_range(self, steps: int) -> tuple[float, float]:
        """Gain and offset of luma that make the pictures alike, of the three that happen."""
        fit = self.placement.fit
        left, right = self._chosen(steps, 24)
        shape = grid(fit, _COARSE)
        one = self._stacks[0].take(left).sample(fit.across.reference, fit.down.reference, shape)
        other = self._stacks[1].take(right).sample(fit.across.distorted, fit.down.distorted, shape)
        errors = {
            luma_map: float(np.sqrt(np.mean((one - np.clip(luma_map[0] * other + luma_map[1], 0, 255)) ** 2)))
            for luma_map in _RANGES
        }
        best = min(errors, key=lambda luma_map: errors[luma_map])
        return best if errors[best] < 0.5 * errors[(1.0, 0.0)] else (1.0, 0.0)

    def _check_content(self) -> None:
        """Refuse different content, and offsets that are out of reach."""
        offset = self.offset
        coarse = self._search(self.placement.fit, _COARSE, self.range)
        if self._blank:
            self._notes.append("the clips' beginnings are nearly blank: nothing to align by, taken as they are")
            return
        if self._likeness < _ALIKE:
            found = self._far_offset(coarse)
            raise self._misaligned(
                f"pictures that agree by {self._likeness:.2f} at best: different content, or no offset within "
                f"{MOST_OFFSET} frames fits{found}",
                f"the same content, correlation {_ALIKE} or more",
                "Look whether it is the right reference, and cut both to start alike.",
            )  # fmt: skip
        agreement, reference, distorted = coarse.agreement(offset.steps)
        if reference >= _MOVING and distorted >= _MOVING and agreement < _AGREED:
            raise self._misaligned(
                f"movement that agrees by {agreement:.2f} at best: no offset within {MOST_OFFSET} frames fits"
                f"{self._far_offset(coarse)}",
                f"an offset of up to {MOST_OFFSET} frames", "Cut both clips to start with the same frame.",
            )  # fmt: skip
        if reference >= _MOVING and distorted < 0.25 * reference:
            self._notes.append("the distorted clip hardly moves where the reference does: its offset can't be checked")
        apart = drift(self._offsets, offset.steps)
        if apart is not None:
            raise self._misaligned(
                f"offsets of {apart[0]} frames at first and {apart[1]} later (clocks that run apart)",
                "the same speed", "Convert the rate by dropping or repeating frames, not by another speed.",
            )  # fmt: skip
        if offset.rivals:
            self._settle_rivals(offset)

    def _settle_rivals(self, offset: Offset) -> None:
        if 0 in offset.rivals or offset.steps == 0:
            self.offset = Offset(
                steps=0, agreement=offset.agreement, reference_motion=offset.reference_motion,
                distorted_motion=offset.distorted_motion, rivals=offset.rivals, pairs=offset.pairs,
            )  # fmt: skip
            others = [steps for steps in (*offset.rivals, offset.steps) if steps]
            what = "nothing moves" if len(others) > self._offsets.most_steps else "little moves"
            self._notes.append(
                f"the offset is ambiguous ({what}; {in_words(others)} fit as well as 0): taken as 0 frames"
            )
            return
        self._notes.append(
            f"the offset is ambiguous: {in_words(offset.rivals)} fit as well as the {offset.steps} frames taken"
        )

    def _far_offset(self, coarse: OffsetSearch) -> str:
        """An offset out of reach that does fit, in words; empty where there is none."""
        shortest = min(len(times) for times in self._times)
        wide = coarse.search(max(coarse.most_steps, shortest * 2 // 3))
        if abs(wide.steps) > coarse.most_steps and wide.agreement > 0.7:
            return f" ({self._offset_in_words(wide.steps)})"
        return ""

    def _check_aspect(self, placement: Placement) -> None:
        pixels = self._facts[0].sample_aspect / self._facts[1].sample_aspect
        squeeze = placement.scales[0] / placement.scales[1] * float(pixels)
        if abs(squeeze - 1) > _SQUEEZED:
            shown = [Fraction(fact.width, fact.height) * fact.sample_aspect for fact in self._facts]
            raise self._misaligned(
                f"a picture squeezed by {squeeze:.3f} (shown as {float(shown[1]):.3f} to 1 with no bars)",
                f"the reference's {float(shown[0]):.3f} to 1",
                "Keep the aspect ratio (pad or crop), or set the sample aspect ratio that undoes it.",
            )  # fmt: skip

    def _rate_words(self) -> Sequence[str]:
        reference, distorted = self._rates
        if reference == distorted:
            return ()
        slower = "reference" if reference < distorted else "distorted clip"
        words = (
            f"{float(distorted):.5g} against {float(reference):.5g} frames/s: pairs are made at the {slower}'s "
            "frames with the nearest in time"
        )
        if abs(reference / distorted - 1) < 0.01:
            self._notes.append(f"{words} (rates nearly the same)")
            return ()
        return (words,)

    def _offset_in_words(self, steps: int) -> str:
        late = "late" if steps > 0 else "early"
        if self._rates[0] == self._rates[1]:
            count = f"{abs(steps)} frame{'s' * (abs(steps) != 1)}"
            if steps > 0:
                return f"distorted starts {count} late: its frame 0 is the reference's frame {steps}"
            return f"distorted starts {count} early: its frame {-steps} is the reference's frame 0"
        fastest = float(max(self._rates))
        return f"distorted starts {abs(steps) / fastest:.3f} s {late} ({abs(steps)} frames at {fastest:.5g} frames/s)"

    def _offset_words(self, late_s: float) -> Sequence[str]:
        return (self._offset_in_words(self.offset.steps),) if late_s else ()

    def _range_words(self) -> Sequence[str]:
        words = _RANGES[self.range]
        flags = [fact.colour_range for fact in self._facts]
        if words:
            return (f"{words}: converted by {self.range[0]:.4f} y {self.range[1]:+.2f}",)
        if flags[0] != flags[1]:
            self._notes.append(
                f"the reference is marked as {flags[0]} range and the distorted clip as {flags[1]}, but their luma "
                "agrees: taken as it is"
            )
        return ()

    def _note_overlap(self, late_s: float) -> None:
        lengths = [fact.duration_s for fact in self._facts]
        if lengths[0] is None or lengths[1] is None:
            return
        begin, end = max(late_s, 0.0), min(lengths[0], lengths[1] + late_s)
        share = (end - begin) / min(lengths[0], lengths[1])
        if share < 0.9:
            self._notes.append(f"the clips overlap for {end - begin:.2f} s, {share:.0%} of the shorter one")

    def _misaligned(self, got: str, expected: str, next_step: str = "Look at both clips side by side.") -> Misaligned:
        return Misaligned(field=self._name, got=got, expected=expected, next_step=next_step)


_NO_GRAMS: Final = Grams(reference=np.zeros((0, 0)), distorted=np.zeros((0, 0)), across=np.zeros((0, 0)))


def _detail(stack: Stack) -> float:
    """Root mean square of luma within pictures, the most detailed fourth of them."""
    spread = stack.pictures.astype(np.float32).std(axis=(1, 2))
    return float(np.quantile(spread, 0.75))


def _likeness(
    reference: Stack,
    distorted: Stack,
    fit: Fit,
    paired: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    every: int,
) -> float:
    """Correlation of the pictures within the fit, at the offset where it is best."""
    shape = grid(fit, _COARSE)
    some = np.arange(0, len(distorted.pictures), 1 if len(distorted.pictures) < 8 * every else every)
    one = _centred(reference.sample(fit.across.reference, fit.down.reference, shape))
    other = _centred(distorted.take(some).sample(fit.across.distorted, fit.down.distorted, shape))
    across = one @ other.T
    sizes = (np.einsum("tp,tp->t", one, one), np.einsum("tp,tp->t", other, other))
    place_of = np.full(len(distorted.pictures), -1)
    place_of[some] = np.arange(len(some))
    best = -1.0
    for left, right in paired:
        kept = place_of[right] >= 0
        if kept.any():
            at, to = left[kept], place_of[right[kept]]
            size = float(sizes[0][at].sum() * sizes[1][to].sum()) ** 0.5
            best = max(best, float(across[at, to].sum()) / (size + 1e-6))
    return best


def _centred(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = pictures.reshape(len(pictures), -1)
    return np.asarray(flat - flat.mean(axis=1, keepdims=True), np.float32)
