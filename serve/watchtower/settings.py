"""The detectors' settings: what trades false alarms against delay, as one value that can be versioned and tuned.

What detectors learn does not depend on them. Shards of slices tell signs, which are what the most sensitive settings
would call alarms; the settings say which of them are, and what an outage makes of alarms. So settings change between
two windows with nothing lost, and other settings can look at the same windows beside.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from serve.artifacts import Artifact
from serve.errors import ArtifactError
from serve.watchtower.alarms import GAP, MISSING, Alarm

MODEL: Final = "detectors"
"""Name of the model whose versions are settings."""
PARAMETER: Final = "settings"
"""Of the manifest: where they are."""

Evidence = Annotated[float, Field(allow_inf_nan=False)]


class DetectorSettings(BaseModel):
    """Settings of alarms and outages. Evidence is -log10 of the probability of so much by chance; windows are of 10 s.

    Attributes:
        evidence: from which a window alone is an alarm: at 8 once in 27 years by 10,000 series, were tails exact.
        lasting_evidence: that is an alarm when the window before had it too; at most `evidence`.
        least_bad: bad ones beyond what is usual, over the span that has most of them, below which nothing is an alarm.
        slow_evidence: from which sums over minutes to more than an hour are an alarm; these are judged a fiftieth as
            often as windows.
        slow_least_bad: bad ones beyond what is usual, of such an alarm.
        slow_lift: times the usual share, of such an alarm.
        least_excess: bad ones beyond what is usual, of a slice that is named.
        least_lift: times the usual share, of a slice that is named.
        confirmed_after: alarmed windows among the latest `confirmed_within` that confirm an outage: where few watch,
            trouble does not show in each window.
        confirmed_within: windows, `confirmed_after` at least.
        least_hurt: sessions that are hurt before an outage is confirmed.
        suspicion_ends: windows as usual in a row, after which an outage that was never confirmed is dropped.
        recovering_after: windows as usual in a row, after which an outage is recovering.
        closed_after: windows as usual in a row, after which it is closed; more than `recovering_after`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    evidence: Evidence = Field(default=8.0, ge=5.5, le=14.0)
    lasting_evidence: Evidence = Field(default=5.0, ge=4.0, le=10.0)
    least_bad: Evidence = Field(default=4.0, ge=2.0, le=50.0)
    slow_evidence: Evidence = Field(default=6.5, ge=5.0, le=12.0)
    slow_least_bad: Evidence = Field(default=8.0, ge=4.0, le=60.0)
    slow_lift: Evidence = Field(default=2.0, ge=1.5, le=6.0)
    least_excess: Evidence = Field(default=4.0, ge=2.0, le=50.0)
    least_lift: Evidence = Field(default=1.5, ge=1.2, le=4.0)
    confirmed_after: int = Field(default=2, ge=1, le=6)
    confirmed_within: int = Field(default=12, ge=1, le=36)
    least_hurt: Evidence = Field(default=5.0, ge=2.0, le=100.0)
    suspicion_ends: int = Field(default=18, ge=6, le=90)
    recovering_after: int = Field(default=6, ge=2, le=60)
    closed_after: int = Field(default=30, ge=6, le=180)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        pairs = (
            ("lasting_evidence", self.lasting_evidence, "evidence", self.evidence),
            ("confirmed_after", self.confirmed_after, "confirmed_within", self.confirmed_within),
            ("recovering_after", self.recovering_after + 1, "closed_after", self.closed_after),
        )
        for less, value, more, most in pairs:
            if value > most:
                raise ValueError(f"{less} must not be above {more}")
        return self

    def is_alarm(self, sign: Alarm) -> bool:
        """Whether a sign is an alarm by these settings."""
        if sign.metric == GAP:
            return True
        if sign.windows > 1:
            usual = sign.expected * sign.total
            large = sign.bad - usual >= self.slow_least_bad and sign.bad >= self.slow_lift * usual
            return sign.evidence >= self.slow_evidence and large
        lasts = sign.metric != MISSING and min(sign.evidence, sign.before) >= self.lasting_evidence
        return (sign.evidence >= self.evidence or lasts) and sign.excess >= self.least_bad

    def alarms(self, signs: Sequence[Alarm]) -> list[Alarm]:
        """Those of some signs that are alarms, in their order."""
        return [sign for sign in signs if self.is_alarm(sign)]

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """The settings that a version holds.

        Raises:
            ArtifactError: it is of another model, lacks settings, or has one that is out of its range.
        """
        manifest = artifact.manifest
        if manifest.name != MODEL:
            raise _unusable("name", manifest.name, f"the model {MODEL}")
        return cls.read(manifest.parameters.get(PARAMETER))

    @classmethod
    def read(cls, document: JsonValue | Any) -> Self:
        """Settings from JSON; those that are left out are the defaults.

        Raises:
            ArtifactError: one is unknown or out of its range.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=True)[0]
            field = ".".join(map(str, (PARAMETER, *first["loc"])))
            raise _unusable(field, repr(first["input"])[:80], first["msg"]) from error


def _unusable(field: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(
        field=f"{MODEL}: {field}", got=got, expected=expected,
        next_step="Train the model again, or name another version; the settings before stay in force.",
    )  # fmt: skip


def bounds(name: str) -> tuple[float, float]:
    """The least and the most that a setting may be."""
    held = DetectorSettings.model_fields[name].metadata
    least, most = ([getattr(one, end) for one in held if hasattr(one, end)] for end in ("ge", "le"))
    return float(least[0]), float(most[0])


DEFAULTS: Final = DetectorSettings()
SENSITIVE: Final = DEFAULTS.model_copy(
    update={
        name: bounds(name)[0]
        for name in ("evidence", "lasting_evidence", "least_bad", "slow_evidence", "slow_least_bad", "slow_lift")
    }
)
"""Of all that are allowed, those that the most is an alarm by: what they leave out, no settings call an alarm."""
