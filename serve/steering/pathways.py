"""What may be steered to: pathways (delivery networks), how much each carries, and how fast players may be moved.

The file is YAML or JSON; docs/steering.md shows one.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serve.errors import InvalidInput

_ID: Final = r"^[A-Za-z0-9._-]{1,64}$"
"""A Pathway ID as HLS allows it (draft-pantos-hls-rfc8216bis, section 7.2)."""

_HOST: Final = r"^[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?$"
_ALL: Final = 1.0 + 1e-9

Text = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""Text, or a number where YAML makes one of it, as of an ASN."""


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clone(_Given):
    """How players make a pathway that their manifest does not have (PATHWAY-CLONES).

    Attributes:
        base_id: the pathway that is copied; the manifest has it.
        host: takes the place of the host in its URIs. A port is for dash.js alone: HLS replaces no more than the host.
        params: query parameters that are added to its URIs.
    """

    base_id: str = Field(pattern=_ID)
    host: str = Field(pattern=_HOST)
    params: dict[str, str] = {}


class Pathway(_Given):
    """One delivery network.

    Attributes:
        id: as in `serviceLocation` (DASH), `PATHWAY-ID` (HLS) and the `cdn` of telemetry.
        weight: how much of the audience it gets, relative to the others; 0: only what is moved to it.
        capacity: largest share of the whole audience that it carries, 0 to 1.
        only: dimension (region, asn, protocol) -> values that it serves; one that is not named: all. A client that does
            not say where it is may be anywhere.
        clone: set for a pathway that the manifests do not have.
    """

    id: str = Field(pattern=_ID)
    weight: float = Field(default=1.0, ge=0, le=1e6)
    capacity: float = Field(default=1.0, gt=0, le=1)
    only: dict[str, frozenset[Text]] = {}
    clone: Clone | None = None

    def serves(self, context: Mapping[str, str]) -> bool:
        """Whether clients of a context may use it."""
        return all(context[name] in values for name, values in self.only.items() if name in context)


class Damping(_Given):
    """How fast clients are moved away and back.

    Attributes:
        step_s: least time between two steps away; best not below `outage_ttl_s`, so that one is seen before the next.
        step_share: largest share of the whole audience that one pathway receives in a step, 0 to 1.
        hold_s: how long a pathway is left alone after its outage was last confirmed; doubles with each time it breaks
            again.
        max_hold_s: where the doubling ends.
        calm_s: how long a pathway must do well until its breaks are forgotten.
        ramp: shares of a pathway's clients that are back after each step of recovery, rising to 1.
        ramp_step_s: time between two of these steps.
    """

    step_s: float = Field(default=10.0, gt=0, le=600)
    step_share: float = Field(default=0.25, gt=0, le=1)
    hold_s: float = Field(default=120.0, gt=0, le=3600)
    max_hold_s: float = Field(default=3600.0, gt=0, le=86_400)
    calm_s: float = Field(default=3600.0, gt=0, le=86_400)
    ramp: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.1, 0.25, 0.5, 1.0), min_length=1)
    ramp_step_s: float = Field(default=60.0, gt=0, le=3600)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.ramp[-1] != 1 or any(one >= other for one, other in zip(self.ramp, self.ramp[1:], strict=False)):
            raise ValueError("a `ramp` that rises to 1")
        return self

    def hold_ms(self, breaks: int) -> float:
        """How long a pathway is left alone that has broken so many times, milliseconds."""
        return 1000 * min(self.max_hold_s, self.hold_s * 2.0 ** min(breaks - 1, 32))


class Pathways(_Given):
    """The whole configuration.

    Attributes:
        pathways: at least one.
        salt: another one deals sessions anew.
        ttl_s: after how long a player asks again; 60 to 300 suit (HLS recommends 300; an outage that begins is seen
            that much later).
        outage_ttl_s: the same for players that an open outage hurts or may hurt.
        stale_s: how old news of outages may be; older ones change nothing.
        damping: how fast clients are moved.
    """

    pathways: tuple[Pathway, ...] = Field(min_length=1, max_length=32)
    salt: str = "playhead"
    ttl_s: int = Field(default=60, ge=1, le=300)
    outage_ttl_s: int = Field(default=10, ge=1, le=300)
    stale_s: float = Field(default=60.0, gt=0, le=3600)
    damping: Damping = Damping()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        counts = Counter(pathway.id for pathway in self.pathways)
        if any(count > 1 for count in counts.values()):
            raise ValueError(f"ids that differ, not {max(counts, key=lambda one: counts[one])!r} twice")
        total = sum(pathway.weight for pathway in self.pathways)
        if not total:
            raise ValueError("a pathway with a `weight` above 0")
        for pathway in self.pathways:
            if pathway.weight / total > pathway.capacity * _ALL:
                raise ValueError(
                    f"`capacity` of {pathway.id!r} at least its share by `weight`, {pathway.weight / total:.3g}"
                )
            if pathway.clone and pathway.clone.base_id not in {one.id for one in self.pathways if one.clone is None}:
                raise ValueError(f"`clone.base_id` of {pathway.id!r} to name a pathway that is no clone itself")
        return self

    @property
    def by_id(self) -> dict[str, Pathway]:
        """The pathways by their ids, in the order of the configuration."""
        return {pathway.id: pathway for pathway in self.pathways}

    @property
    def weights(self) -> dict[str, float]:
        """Weights by pathway."""
        return {pathway.id: pathway.weight for pathway in self.pathways}


def read_pathways(path: Path) -> Pathways:
    """Read the configuration.

    Raises:
        InvalidInput: no such file, neither YAML nor JSON, or what it says cannot be used.
    """
    try:
        return Pathways.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        got, field, expected = f"{path}: {error.strerror}", "steering", "a readable file"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        got, field, expected = f"{path}: {error}", "steering", "YAML or JSON"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(["steering", *map(str, first["loc"])])
        got, expected = str(first["input"]), first["msg"].removeprefix("Value error, ")
    raise InvalidInput(
        field=field, got=got, expected=expected, next_step=f"Correct {path}; docs/steering.md shows an example."
    )
