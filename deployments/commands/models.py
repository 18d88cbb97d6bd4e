"""`playhead models`."""

from typing import Any

from deployments.commands.output import Json, answering


def models(*, as_json: Json = False) -> None:
    """List the model versions on this machine; the champion answers requests."""
    from rich.table import Table  # noqa: PLC0415

    from deployments.inventory import model_versions  # noqa: PLC0415
    from features.settings import Settings  # noqa: PLC0415

    with answering(as_json=as_json) as output:
        versions = model_versions(Settings.from_env().models)
        table = Table("model", "version", "", "created", "hr@10", "trouble", box=None, pad_edge=False)
        rows: list[dict[str, Any]] = []
        for entry in versions:
            mark = "champion" if entry.champion else ""
            table.add_row(entry.name, entry.version, mark, entry.created, _metric(entry.metrics), entry.trouble)
            rows.append(entry.as_json())
        output.console.print(table if rows else "no models yet: playhead train recommend")
        output.answer({"models": rows})


def _metric(metrics: dict[str, Any]) -> str:
    value = metrics.get("hr@10")
    return f"{value:.4f}" if isinstance(value, float) else ""
