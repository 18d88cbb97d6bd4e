"""`playhead feedback`: what people said of outputs of models, asked of the service that runs, or exported as labels."""

from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.commands.output import Json, answering

app = typer.Typer(help="What people said of outputs of models.", no_args_is_help=True)

Kind = Annotated[
    str, typer.Option(help="recommendation_row, tag, quality_score, bitrate_decision or outage; all if not given.")
]
Model = Annotated[str, typer.Option(help="Only of this model's outputs.")]
Version = Annotated[str, typer.Option(help="Only of this version's outputs.")]
Url = Annotated[str, typer.Option(help="The service; the one that is up on this machine if not given.")]


@app.callback()
def _group() -> None:
    """What people said of outputs of models; it is given by POST /v1/feedback."""


@app.command("list")
def list_(
    *,
    kind: Kind = "",
    verdict: Annotated[str, typer.Option(help="good, bad or unsure.")] = "",
    model: Model = "",
    version: Version = "",
    reporter: Annotated[str, typer.Option(help="Only what this one said.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest so many.")] = 20,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """What was said, newest first."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from serve.clock import utc_brief  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        found = _ask(url, kind=kind, verdict=verdict, model=model, version=version, reporter=reporter, limit=str(limit))
        table = Table("time (UTC)", "verdict", "what", "of", "version", "by", "why", box=None, pad_edge=False)
        for said in found["feedback"]:
            subjects = (said["request_id"], said["subject_id"], said["row"], said["title_id"])
            of = " ".join(subject for subject in subjects if subject)
            cells = (said["verdict"], said["kind"], of, said["version"] or "", said["reporter"], said["reason"])
            table.add_row(utc_brief(said["ts"]), *map(escape, cells))
        output.console.print(table if found["feedback"] else "nobody said anything of this kind yet")
        output.answer(found)


@app.command("count")
def count(*, kind: Kind = "", model: Model = "", version: Version = "", url: Url = "", as_json: Json = False) -> None:
    """How many good, bad and unsure ones each version has."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        counts = _ask(url, kind=kind, model=model, version=version, limit="1")["counts"]
        table = Table("model", "version", "what", "good", "bad", "unsure", box=None, pad_edge=False)
        for one in counts:
            names = (one["model"] or "", one["version"] or "unknown", one["kind"])
            table.add_row(*map(escape, names), *(f"{one[verdict]:,}" for verdict in ("good", "bad", "unsure")))
        output.console.print(table if counts else "nobody said anything of this kind yet")
        output.answer({"counts": counts})


@app.command("export")
def export(
    *,
    labels: Annotated[Path, typer.Option(help="A .parquet or .csv file to write.")],
    as_json: Json = False,
) -> None:
    """Write labels for training: each judgement with the profile, titles and version that it is about."""
    with answering(as_json=as_json) as output:
        from features.settings import Settings  # noqa: PLC0415
        from training.labels import make_labels, write_labels  # noqa: PLC0415

        found = make_labels(Settings.from_env())
        write_labels(found, labels)
        joined = int(found["profile_id"].is_not_null().sum())
        told = {
            "labels": str(labels),
            "rows": len(found),
            "feedback": found["feedback_id"].n_unique(),
            "with_profile": joined,
        }
        output.console.print(
            f"{told['rows']:,} labels of {told['feedback']:,} judgements, {joined:,} with their exposure: {labels}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        output.answer(told)


def _ask(url: str, **query: str) -> dict[str, Any]:
    from urllib.parse import urlencode  # noqa: PLC0415

    from deployments.service import ask_named  # noqa: PLC0415

    asked = urlencode({name: value for name, value in query.items() if value})
    return ask_named(url, f"/v1/feedback?{asked}")
