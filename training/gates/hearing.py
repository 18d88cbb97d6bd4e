"""A candidate before its gate: what it was asked so far, and the verdict on that."""

from dataclasses import dataclass, field
from typing import Any

from serve.artifacts import Artifact
from serve.errors import ArtifactError
from training.gates.intervals import Floats
from training.gates.soundness import check_latency, quantiles_ms
from training.gates.verdict import Check, Verdict


@dataclass(kw_only=True, eq=False)
class Hearing:
    """What is known of a candidate.

    Attributes:
        candidate: the artifact.
        champion: the artifact that it would replace.
        checks: so far, in order.
        facts: what the verdict will rest on, as JSON.
        latency_ms: as in Verdict.
    """

    candidate: Artifact
    champion: Artifact
    checks: list[Check]
    facts: dict[str, Any]
    latency_ms: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether its graphs, as far as they were checked, can be asked anything."""
        return all(check.passed for check in self.checks if check.name in {"finite", "parity"})

    def refused(self, who: str, error: ArtifactError) -> Verdict:
        """The verdict where those that would serve the candidate do not take it."""
        self.checks.append(Check(name="served", passed=False, text=f"{who} refuses it: {error}"))
        return self.verdict()

    def time(self, ours: Floats, theirs: Floats, seed: int) -> None:
        """Check what answers took.

        Args:
            ours: seconds of each of the candidate's.
            theirs: of each of the champion's, in the same order.
            seed: of the bootstrap.
        """
        self.checks.append(check_latency(ours, theirs, seed=seed))
        self.latency_ms = {"candidate": quantiles_ms(ours), "champion": quantiles_ms(theirs)}

    def verdict(self, **more: Any) -> Verdict:
        """The verdict on what was checked.

        Args:
            more: fields of Verdict, such as `comparisons`.
        """
        return Verdict(
            model=self.candidate.manifest.name, candidate=self.candidate.version, champion=self.champion.version,
            checks=tuple(self.checks), facts=self.facts, latency_ms=self.latency_ms, **more,
        )  # fmt: skip
