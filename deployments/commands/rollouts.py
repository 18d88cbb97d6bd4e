"""`playhead rollout`: which version of a model answers, changed on the service that runs."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from deployments.commands.output import Json, Output, answering

app = typer.Typer(help="Change which version of a model answers, on the service that runs.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The model: recommend, bitrate, quality, detectors.")]
By = Annotated[str, typer.Option(help="Who asks, for the record.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]
Url = Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")]


@app.callback()
def _group() -> None:
    """Change which version of a model answers. The operator's token is read from PLAYHEAD_OPERATOR_TOKEN."""


@app.command("promote")
def promote(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="Needed where no rollout of it goes on yet.")] = None,
    *,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Else the next stage: .01, .1, .5, all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Although its gate did not pass, or was not asked.")] = False,
    by: By = "operator",
    reason: Reason = "",
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Begin a version's rollout, give it a larger share, or make it the champion (--share 1)."""
    body: dict[str, Any] = {"by": by, "reason": reason} | ({"force": True} if force else {})
    body |= {field: value for field, value in (("version", version), ("share", share)) if value is not None}
    _change(name, "promote", body, url, as_json=as_json)


@app.command("rollback")
def rollback(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="That should not answer any more; else the challenger.")] = None,
    *,
    by: By = "operator",
    reason: Reason = "",
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Back to the champion; a champion that is named makes room for the one before."""
    body = {"by": by, "reason": reason} | ({} if version is None else {"version": version})
    _change(name, "rollback", body, url, as_json=as_json)


@app.command("pause")
def pause(
    name: Name,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Let it go on by itself again.")] = False,
    by: By = "operator",
    reason: Reason = "",
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Let only people give the challenger a larger share. What harms is rolled back all the same."""
    _change(name, "pause", {"paused": not resume, "by": by, "reason": reason}, url, as_json=as_json)


@app.command("shadow")
def shadow(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="None: end it.")] = None,
    *,
    by: By = "operator",
    reason: Reason = "",
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Have a version work beside the answers; what it makes is compared, and nobody is shown it."""
    _change(name, "shadow", {"version": version, "by": by, "reason": reason}, url, as_json=as_json)


@app.command("status")
def status(name: Name, *, url: Url = "", as_json: Json = False) -> None:
    """Who answers, and what is known of a version that is tried."""
    from rich.table import Table  # noqa: PLC0415

    from serve.rollout.sequential import evidence_text  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        found = _ask(url, f"/v1/models/{name}/rollout")
        _tell(output, found["plan"])
        judged = found["judged"]
        if judged is not None:
            output.console.print(f"{judged['action']}: {judged['reason']}", markup=False, soft_wrap=True)
            table = Table(
                "metric", "challenger", "champion", "ratio", "95 %", "e-value", "of", box=None, pad_edge=False
            )
            for one in judged["evidence"]:
                high = "" if one["high"] is None else f"{one['high']:.2f}"
                ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
                cells = (f"{one['challenger']:,}", f"{one['champion']:,}", ratio, f"{one['low']:.2f} to {high}")
                table.add_row(one["metric"], *cells, evidence_text(one["e_value"]), evidence_text(one["needed"]))
            output.console.print(table)
            for line in _beside(judged.get("beside") or {}):
                output.console.print(line, markup=False, soft_wrap=True)
        if found.get("compared") and name == "detectors":
            for one in found["compared"]:
                for line in _called(one):
                    output.console.print(line, markup=False, soft_wrap=True)
        elif found.get("compared"):
            columns = ("version", "role", "content", "segments", "mean", "mean size", "largest")
            table = Table(*columns, box=None, pad_edge=False, title="points of VMAF from the champion's")
            for one in found["compared"]:
                sizes = (f"{one[name]:+.2f}" if name == "mean" else f"{one[name]:.2f}" for name in _DIFFERENCES)
                table.add_row(one["version"], one["role"], one["content"], f"{one['segments']:,}", *sizes)
            output.console.print(table)
        output.answer(found)


@app.command("changes")
def changes(
    name: Name,
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest so many.")] = 20,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Who changed which version answers, and why; newest first."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from serve.clock import utc_brief  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        found = _ask(url, f"/v1/models/{name}/changes?limit={limit}")
        table = Table("time (UTC)", "what", box=None, pad_edge=False)
        for title in ("champion", "challenger"):
            table.add_column(title, no_wrap=True, min_width=12)
        for title in ("share", "by", "why"):
            table.add_column(title)
        for change in found["changes"]:
            plan = change["plan"]
            share = f"{plan['share']:g}" if plan["challenger"] else ""
            action = f"{change['action']}, forced" if change["evidence"].get("forced") else change["action"]
            cells = (action, plan["champion"] or "", plan["challenger"] or "", share)
            table.add_row(utc_brief(change["ts"]), *cells, escape(change["by"]), escape(change["reason"]))
        output.console.print(table if found["changes"] else "nobody changed anything yet")
        output.answer(found)


def _called(one: dict[str, Any]) -> Iterator[str]:
    """What settings of the detectors called beside the champion's, in lines."""
    earlier = "" if one["earlier_s"] is None else f" ({one['earlier_s']:+.0f} s earlier in the median)"
    yield (
        f"{one['role']} {one['version']}, {one['windows']:,} windows: confirmed by both {one['both']}{earlier}, by the "
        f"champion only {one['champion_only']}, by it only {one['other_only']}; suspicions that were never confirmed: "
        f"champion {one['champion_suspicions']}, it {one['other_suspicions']}"
    )
    if one["given_up"] or one["searches_left_out"]:
        yield f"  {one['given_up'] or 'it goes on'}; {one['searches_left_out']} searches for causes were left out"
    for call in one["calls"]:
        slice_ = (call["other"] or call["champion"])["slice"]
        where = ", ".join(f"{name} {value}" for name, value in slice_.items()) or "everyone"
        yield f"  {where}: champion {_times(call['champion'])}; it {_times(call['other'])}"


def _times(call: dict[str, Any] | None) -> str:
    from serve.clock import utc_brief  # noqa: PLC0415

    if call is None:
        return "nothing"
    return ", ".join(
        f"{word} {utc_brief(call[f'{word}_ts'])}"
        for word in ("suspected", "confirmed", "closed")
        if call[f"{word}_ts"] is not None
    )


_DIFFERENCES = ("mean", "mean_absolute", "largest")


def _beside(told: dict[str, Any]) -> Iterator[str]:
    """What decides nothing, in lines."""
    if "sessions_asked" in told:
        yield f"{told['sessions_asked']:,} sessions asked, {told['sessions_over']:,} of them are over"
    for arm, bounds in (told.get("latency_s") or {}).items():
        parts = []
        for name, ends in bounds.items():
            low, high = ("?" if end is None else f"{1000 * end:.1f}" for end in ends)
            parts.append(f"{name} {low} to {high} ms")
        yield f"{arm}: {', '.join(parts)} (95 %)"


def _change(name: str, verb: str, body: dict[str, Any], url: str, *, as_json: bool) -> None:
    with answering(as_json=as_json) as output:
        plan = _ask(url, f"/v1/models/{name}/{verb}", body)
        _tell(output, plan)
        output.answer(plan)


def _tell(output: Output, plan: dict[str, Any]) -> None:
    line = f"{plan['model']}: champion {plan['champion'] or 'none'}"
    if plan["challenger"]:
        line += f", challenger {plan['challenger']} answers {plan['share']:.0%}{', paused' if plan['paused'] else ''}"
    if plan["shadow"]:
        line += f", shadow {plan['shadow']}"
    output.console.print(line, markup=False, soft_wrap=True)


def _ask(url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the service, as the operator if something is to change."""
    from deployments.service import ask_named  # noqa: PLC0415
    from serve.gateway.rollouts import OPERATOR_HEADER, OPERATOR_VARIABLE  # noqa: PLC0415

    headers = {OPERATOR_HEADER: os.environ.get(OPERATOR_VARIABLE, "")} if body is not None else {}
    return ask_named(url, path, body, headers)
