"""`playhead eval online`, `playhead eval drift`: what answers lead to, and whether the audience has changed."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from deployments.commands.output import Json, answering, reporting

if TYPE_CHECKING:
    from rich.table import Table

_SHARES: Final = ("play_rate", "finish_rate", "thumbs_up_rate", "thumbs_down_rate", "hr@10", "degraded_share")


def online(
    model: Annotated[str, typer.Argument(help="The model.")] = "recommend",
    *,
    url: Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")] = "",
    as_json: Json = False,
) -> None:
    """What each version's answers led to, and whether live traffic drifts, on the service that runs."""
    from deployments.service import ask_named  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        figures, drift = (ask_named(url, f"/v1/models/{model}/{what}") for what in ("online", "drift"))
        if figures["degraded"]:
            output.console.print("nothing was measured in the last ten minutes: no pages, or no Watchtower")
        for window in figures["windows"]:
            output.console.print(f"the last {window['window_s'] // 60} minutes", markup=False)
            output.console.print(_figures(window["versions"]))
        if drift["status"] != "unknown":
            against = f"against what {drift['version']} learned"
            output.console.print(f"{drift['status']}, {against}" if drift["reference"] else drift["status"])
            output.console.print(_signals(drift["signals"]))
        output.answer({"online": figures, "drift": drift})


def drift(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Of the audiences.")] = 0,
    days: Annotated[int, typer.Option(min=1, max=100, help="Steady days.")] = 5,
    shifts: Annotated[int, typer.Option(min=1, max=1_000, help="Changes of each kind.")] = 20,
    rate: Annotated[float, typer.Option(min=0.1, max=100, help="Plays a second, on average over a day.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Simulated audiences: how soon a change is noticed, and how often one is seen that is none."""
    with answering(as_json=as_json) as output:
        from rich.table import Table  # noqa: PLC0415

        from deployments.progress import Moment, Notice  # noqa: PLC0415
        from training.watchtower.drifting import evaluate  # noqa: PLC0415

        with reporting(output) as reporter:

            def progress(name: str, done: int, total: int) -> None:
                moment = Moment.DONE if done == total else Moment.ADVANCE
                reporter.tell(Notice(phase=name, moment=moment, share=done / total))

            report = evaluate(seed=seed, days=days, shifts=shifts, plays_per_s=rate, progress=progress)
        alarms = ", ".join(f"{name} {count}" for name, count in report["false_alarms"].items()) or "none"
        output.console.print(
            f"  false alarms a day  {report['false_alarms_per_day']:.2f} ({alarms} in {days} days), at most "
            f"{report['false_alarms_per_day_upper_95']:.2f} (95 %)", markup=False, soft_wrap=True,
        )  # fmt: skip
        table = Table("change", "noticed", "median s", "p90 s", "by", box=None, pad_edge=False)
        for name, row in report["delays"].items():
            seconds = ("-" if row[key] is None else f"{row[key]:.0f}" for key in ("median_s", "p90_s"))
            by = ", ".join(f"{signal} {count}" for signal, count in row["by"].items())
            table.add_row(name, f"{row['noticed']:.0%}", *seconds, by)
        output.console.print(table)
        output.answer(report)


def _figures(versions: dict[str, dict[str, Any]]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    table = Table("", *versions, box=None, pad_edge=False)
    table.add_row("role", *(one["role"] for one in versions.values()))
    for name in ("pages", "plays"):
        table.add_row(name, *(f"{one[name]:,}" for one in versions.values()))
    for name in (*_SHARES, "ndcg@10"):
        as_share = name != "ndcg@10"
        table.add_row(name.replace("_", " "), *(_interval(one[name], as_share=as_share) for one in versions.values()))
    for rank in range(5):
        found = ({one["rank"]: one for one in version["ctr_by_rank"]}.get(rank) for version in versions.values())
        table.add_row(f"plays at rank {rank}", *(_interval(one, as_share=True) for one in found))
    for name, form in (("coverage", "{:.1%}"), ("novelty_bits", "{:.2f}"), ("ranker_p99_s", "{:.4f}")):
        values = (one[name] for one in versions.values())
        table.add_row(name.replace("_", " "), *("" if value is None else form.format(value) for value in values))
    calibrations = (one["calibration"] for one in versions.values())
    table.add_row("observed / predicted", *("" if one is None else f"{one['ratio']:.2f}" for one in calibrations))
    return table


def _interval(found: dict[str, float] | None, *, as_share: bool) -> str:
    if found is None:
        return ""
    value, low, high = found["value"], found["low"], found["high"]
    return f"{value:.1%} ({low:.1%} to {high:.1%})" if as_share else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _signals(signals: list[dict[str, Any]]) -> "Table":
    from rich.table import Table  # noqa: PLC0415

    from serve.clock import utc_brief  # noqa: PLC0415

    table = Table("signal", "", "value", "bound", "of", "since (UTC)", box=None, pad_edge=False)
    for one in signals:
        values = ("" if one[key] is None else f"{one[key]:.3f}" for key in ("value", "bound"))
        since = one["since_ts"]
        at = "" if since is None else utc_brief(since)
        state = f"{one['state']} from the start" if one["from_start"] else one["state"]
        table.add_row(one["name"], state, *values, f"{one['n']:,}", at)
    return table
