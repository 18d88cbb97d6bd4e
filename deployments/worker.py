"""Parts that work on the logs, each a process: `python -m deployments.worker NAME`.

    sinks        drain logs into Parquet files: watch events, from which models are trained; sessions; exposures;
                 feedback
    watchtower   a replica of the Watchtower; any number may run, on any machine that reaches the store
    learner      updates models from what viewers did; any number may run, one works
    registry     mirrors who answers into the registry's aliases, and fetches versions that are not on this machine

Settings come from the environment. A part ends on SIGTERM and when its standard input ends, after the round it is in;
what it had not acknowledged, the next one takes up.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Final

from features.settings import Settings
from features.sink import EVENTS, LogSink
from serve.feedback.records import FEEDBACK
from serve.logs import configure
from serve.priority import give_way
from serve.rollout.exposures import EXPOSURES
from serve.telemetry.records import SESSIONS

_NICENESS: Final = 10
"""Of parts that nobody waits for, and of what they start."""


def main(name: str) -> None:
    """Work until told to stop."""
    configure()
    settings = Settings.from_env()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    PARTS[name](settings, stop)


def drain(settings: Settings, stop: threading.Event) -> None:
    """Drain the logs, each in a thread of its own."""
    threads = [
        threading.Thread(target=LogSink(settings, settings.home / log.name, log).run, args=(stop,))
        for log in (EVENTS, SESSIONS, EXPOSURES, FEEDBACK)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def watchtower(settings: Settings, stop: threading.Event) -> None:
    """Take a share of the Watchtower's roles, and tell changes of outages where an address is set."""
    from serve.rollout.decisions import Limits  # noqa: PLC0415
    from serve.watchtower.board import connect  # noqa: PLC0415
    from serve.watchtower.leases import replica_name  # noqa: PLC0415
    from serve.watchtower.replica import WatchtowerReplica  # noqa: PLC0415 - numpy, polars
    from serve.watchtower.webhook import Webhook, WebhookSettings  # noqa: PLC0415

    name, limits, hook = replica_name(), Limits.from_env(), WebhookSettings.from_env()
    telling = None
    if hook is not None:
        telling = threading.Thread(target=Webhook(connect(settings), hook, name).run, args=(stop,))
        telling.start()
    try:
        WatchtowerReplica(settings, name, limits).run(stop)
    finally:
        stop.set()  # also where it raised: a process without its Watchtower is to end, and be started again
        if telling is not None:
            telling.join()


def learn(settings: Settings, stop: threading.Event) -> None:
    """Update models by themselves, when an update is due."""
    from deployments.learning.learner import Learner, start_update  # noqa: PLC0415
    from deployments.learning.policy import LearningPolicy  # noqa: PLC0415
    from serve.online.board import drifting_since  # noqa: PLC0415
    from serve.watchtower.leases import replica_name  # noqa: PLC0415

    give_way(_NICENESS)
    Learner(settings, replica_name(), LearningPolicy.from_env(), start_update, drifting_since).run(stop)


def registry(settings: Settings, stop: threading.Event) -> None:
    """Mirror plans into the registry; MLflow's 250 MB are held only while plans change, and a little longer."""
    import redis  # noqa: PLC0415

    from training.mirroring import InChild, RegistryMirror  # noqa: PLC0415

    give_way(_NICENESS)
    with (
        redis.Redis.from_url(settings.redis_url, socket_timeout=5.0, socket_connect_timeout=5.0) as store,
        closing(InChild(stop)) as work,
    ):
        RegistryMirror(settings.models, work).run(store, stop)


PARTS: Final[Mapping[str, Callable[[Settings, threading.Event], None]]] = {
    "sinks": drain,
    "watchtower": watchtower,
    "learner": learn,
    "registry": registry,
}

if __name__ == "__main__":
    main(sys.argv[1])
