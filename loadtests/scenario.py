"""Scenarios: what is asked, how often and by whom, read from a TOML file; and the run of one against a service.

A scenario's paths and bodies name what is filled in for each request: {profile_id}, {title_id}, {event_id} (unique) and
{ts} (UTC milliseconds of the intended send time; a body string that is only "{ts}" becomes a number).
"""

import ipaddress
import re
import time
import tomllib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import orjson
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from loadtests.arrivals import poisson_arrivals_s, zipf_draws
from loadtests.client import ClientSettings, PlannedRequest, probe, run_plan
from loadtests.report import Report
from serve.errors import InvalidInput, Unavailable

FOLDER: Final = Path(__file__).parent / "scenarios"
PLACEHOLDERS: Final = frozenset({"profile_id", "title_id", "event_id", "ts"})
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")


def _check_placeholders(value: Any) -> None:
    if isinstance(value, dict):
        for part in value.values():
            _check_placeholders(part)
    elif isinstance(value, list):
        for part in value:
            _check_placeholders(part)
    elif isinstance(value, str):
        unknown = set(_PLACEHOLDER.findall(value)) - PLACEHOLDERS
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in sorted(PLACEHOLDERS))
            raise ValueError(f"unknown placeholder {{{min(unknown)}}}; known: {known}")


class RequestTemplate(BaseModel):
    """One kind of request of a scenario.

    Attributes:
        label: its name in the report.
        weight: how often it is drawn, relative to the others; above 0.
        method: GET or POST.
        path: path and query with placeholders; starts with a slash.
        body: JSON body with placeholders; None sends none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(min_length=1, max_length=64)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    method: str = Field(default="GET", pattern="^(GET|POST)$")
    path: str = Field(pattern="^/[\x21-\x7e]*$")
    body: dict[str, Any] | None = None

    @field_validator("path", "body")
    @classmethod
    def _known_placeholders(cls, value: Any) -> Any:
        _check_placeholders(value)
        return value


class Scenario(BaseModel):
    """What a load test does.

    Attributes:
        name: the file's name without its ending.
        description: one line for people.
        rate_rps: requests a second unless the caller asks for another rate.
        duration_s: length in seconds unless the caller asks for another.
        zipf_exponent: how uneven profiles and titles are drawn; 0 evenly, 1 Zipf's law.
        timeout_s: longest wait for an answer.
        requests: the kinds of request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    rate_rps: float = Field(gt=0, allow_inf_nan=False)
    duration_s: float = Field(gt=0, allow_inf_nan=False)
    zipf_exponent: float = Field(default=1.0, ge=0, le=10)
    timeout_s: float = Field(default=5.0, gt=0, le=600)
    requests: tuple[RequestTemplate, ...] = Field(min_length=1)


def scenario_names() -> list[str]:
    """Names of the scenarios that come with Playhead."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_scenario(name_or_path: str | Path) -> Scenario:
    """Read a scenario that comes with Playhead by its name, or any other by its path.

    Raises:
        InvalidInput: no such scenario, no valid TOML, or a field that is wrong, by its name.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        raise InvalidInput(
            field="scenario",
            got=str(name_or_path),
            expected=f"one of {', '.join(scenario_names())}, or the path of a .toml file",
            next_step="Correct the name.",
        )
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(
            field=str(path), got=str(error), expected="a TOML file in UTF-8", next_step="Correct that line."
        ) from error
    try:
        return Scenario.model_validate({"name": path.stem, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(
            field=f"{path.name}: {'.'.join(str(part) for part in first['loc'])}",
            got=first["input"],
            expected=first["msg"],
            next_step=f"Correct it; {FOLDER / 'home.toml'} is an example.",
        ) from error


@dataclass(frozen=True, slots=True)
class Audience:
    """Who asks, and for which titles.

    Attributes:
        profile_ids: at least one.
        title_ids: at least one.
    """

    profile_ids: Sequence[str]
    title_ids: Sequence[str]

    @classmethod
    def numbered(cls, profiles: int, titles: int = 1000) -> Self:
        """Profiles and titles with the ids 1, 2, 3, ... for a service whose data set is not at hand."""
        return cls([str(n) for n in range(1, profiles + 1)], [str(n) for n in range(1, titles + 1)])

    @classmethod
    def of_dataset(cls, folder: Path) -> Self:
        """All profiles and titles of a prepared data set.

        Raises:
            InvalidInput: the folder lacks profiles.parquet or titles.parquet, or they hold nothing.
        """
        ids = []
        for file, column in (("profiles.parquet", "profile_id"), ("titles.parquet", "title_id")):
            path = folder / file
            if not path.is_file():
                raise InvalidInput(
                    field="profiles",
                    got=str(path),
                    expected="a prepared data set with profiles.parquet and titles.parquet",
                    next_step="Prepare one with `playhead data import`, or give a number of profiles.",
                )
            values = pq.read_table(path, columns=[column]).column(column).to_pylist()
            if not values:
                raise InvalidInput(
                    field="profiles", got=f"no rows in {path}", expected="at least one", next_step="Prepare it again."
                )
            ids.append([str(value) for value in values])
        return cls(*ids)


def _filled(template: Any, values: Mapping[str, str | int]) -> Any:
    """A body with its placeholders replaced; a string that is only a placeholder takes the value's own type."""
    if isinstance(template, dict):
        return {key: _filled(part, values) for key, part in template.items()}
    if isinstance(template, list):
        return [_filled(part, values) for part in template]
    if isinstance(template, str):
        whole = _PLACEHOLDER.fullmatch(template)
        if whole:
            return values[whole[1]]
        return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), template)
    return template


def plan_requests(
    scenario: Scenario, audience: Audience, *, rate_rps: float, duration_s: float, seed: int, start_ms: int, run_id: str
) -> list[PlannedRequest]:
    """Every request of a run, sorted by intended time; the same seed gives the same plan.

    Args:
        scenario: what is asked.
        audience: by whom, and for which titles.
        rate_rps: mean requests a second.
        duration_s: length in seconds.
        seed: of arrivals, profiles, titles and kinds of request, each drawn independently of the others.
        start_ms: UTC milliseconds at which the run starts, for {ts}.
        run_id: makes event ids unique across runs.
    """
    seeds = [int(value) for value in np.random.SeedSequence(seed).generate_state(4, np.uint64)]
    times_s = poisson_arrivals_s(rate_rps=rate_rps, duration_s=duration_s, seed=seeds[0])
    exponent = scenario.zipf_exponent
    n_profiles, n_titles = len(audience.profile_ids), len(audience.title_ids)
    profiles = zipf_draws(population=n_profiles, size=len(times_s), exponent=exponent, seed=seeds[1])
    titles = zipf_draws(population=n_titles, size=len(times_s), exponent=exponent, seed=seeds[2])
    weights = np.array([request.weight for request in scenario.requests])
    kinds = np.random.default_rng(seeds[3]).choice(len(weights), size=len(times_s), p=weights / weights.sum())
    plan = []
    for index, at_s in enumerate(times_s.tolist()):
        template = scenario.requests[kinds[index]]
        values: dict[str, str | int] = {
            "profile_id": audience.profile_ids[profiles[index]],
            "title_id": audience.title_ids[titles[index]],
            "event_id": f"{run_id}-{index}",
            "ts": start_ms + int(at_s * 1e3),
        }
        path = template.path
        for key, value in values.items():
            path = path.replace(f"{{{key}}}", quote(str(value), safe=""))
        body = None if template.body is None else orjson.dumps(_filled(template.body, values))
        plan.append(PlannedRequest(at_s, template.label, template.method, path, body))
    return plan


def check_target(base_url: str, *, allow_remote: bool) -> str:
    """The base URL without a trailing slash, once it is safe to load it.

    Raises:
        InvalidInput: no http(s) URL with a host, or a host that is not this machine and was not allowed.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidInput(
            field="base_url", got=base_url, expected="http://HOST:PORT", next_step="Usually http://127.0.0.1:8000."
        )
    if not allow_remote and not _is_loopback(parts.hostname):
        raise InvalidInput(
            field="base_url",
            got=base_url,
            expected="an address of this machine (127.0.0.1, ::1, localhost)",
            next_step="Load can take a service down: allow a remote target (--allow-remote) only where that is fine.",
        )
    return base_url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_scenario(
    name_or_path: str | Path,
    *,
    base_url: str = "http://127.0.0.1:8000",
    rps: float | None = None,
    seconds: float | None = None,
    seed: int = 0,
    profiles: Path | int | Sequence[str] = 1000,
    headers: Mapping[str, str] | None = None,
    max_in_flight: int = 256,
    allow_remote: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Report:
    """Run a scenario against a service and report what it measured.

    Args:
        name_or_path: a scenario's name, or the path of a .toml file.
        base_url: the service; on this machine unless allow_remote.
        rps: mean requests a second; None: the scenario's.
        seconds: length; None: the scenario's.
        seed: same seed, same arrivals and draws.
        profiles: folder of a prepared data set, a number of profiles (ids 1, 2, 3, ...), or profile ids.
        headers: sent with every request.
        max_in_flight: requests open at a time; more are counted as the error `overload`.
        allow_remote: load a host other than this machine.
        on_progress: called with the share of the plan that has left, 0 to 1.

    Raises:
        InvalidInput: a scenario, target, rate or audience that cannot be used.
        Unavailable: nothing answers at base_url.
    """
    scenario = read_scenario(name_or_path)
    target = check_target(base_url, allow_remote=allow_remote)
    if isinstance(profiles, Path):
        audience = Audience.of_dataset(profiles)
    elif isinstance(profiles, int):
        audience = Audience.numbered(profiles)
    else:
        audience = Audience(profiles, Audience.numbered(1).title_ids)
    settings = ClientSettings(
        base_url=target, timeout_s=scenario.timeout_s, max_in_flight=max_in_flight, headers=headers or {}
    )
    try:
        probe(target, path="/healthz", timeout_s=scenario.timeout_s)
    except httpx.HTTPError as error:
        raise Unavailable(
            field="base_url",
            got=f"{target}: {type(error).__name__}",
            expected="a service that answers",
            next_step="Start it with `playhead up`, or name another base URL.",
        ) from error
    started, duration_s = datetime.now(UTC), seconds if seconds is not None else scenario.duration_s
    plan = plan_requests(
        scenario,
        audience,
        rate_rps=rps if rps is not None else scenario.rate_rps,
        duration_s=duration_s,
        seed=seed,
        start_ms=int(time.time() * 1e3),
        run_id=uuid.uuid4().hex[:12],
    )
    if not plan:
        raise InvalidInput(
            field="rps * seconds",
            got=0,
            expected="at least one arrival",
            next_step="Ask for a longer run or a higher rate.",
        )
    recording = run_plan(plan, settings, on_progress=on_progress)
    return Report.of(recording, scenario=scenario.name, seed=seed, duration_s=duration_s, started=started)
