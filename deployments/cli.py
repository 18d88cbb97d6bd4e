"""The `playhead` command: its verbs and nothing else. Each verb's work is in deployments/commands/."""

import typer

from deployments.commands import (
    anomaly,
    compilation,
    data,
    demo,
    diagnosis,
    evaluation,
    feedback,
    gate,
    home,
    learning,
    load,
    localise,
    models,
    online,
    outages,
    quality,
    rollout,
    rollouts,
    sessions,
    stack,
    titles,
    training,
)

app = typer.Typer(
    name="playhead",
    help="Real-time machine learning for streaming media, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("status")(stack.status)
app.command("doctor")(diagnosis.doctor)
app.add_typer(data.app, name="data")
app.add_typer(titles.app, name="titles")
app.add_typer(training.app, name="train")
evaluation.app.command("anomaly")(anomaly.anomaly)
evaluation.app.command("localise")(localise.evaluate)
evaluation.app.command("outages")(outages.evaluate)
evaluation.app.command("rollout")(rollout.evaluate)
evaluation.app.command("online")(online.online)
evaluation.app.command("drift")(online.drift)
app.add_typer(evaluation.app, name="eval")
app.command("localise")(localise.localise)
app.add_typer(rollouts.app, name="rollout")
app.add_typer(learning.app, name="learn")
app.add_typer(feedback.app, name="feedback")
app.command("sessions")(sessions.sessions)
app.add_typer(models.app, name="models")
app.command("gate")(gate.gate)
app.command("compile")(compilation.compile_)
app.add_typer(quality.app, name="quality")
app.add_typer(demo.app, name="demo")
app.command("load")(load.load)
app.command("home")(home.home)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
