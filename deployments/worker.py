"""The part that drains the event log into Parquet files, from which the next model is trained.

Run as `python -m deployments.worker`; settings come from the environment. It ends on SIGTERM and when its standard
input ends, after the round it is in; what it had not acknowledged, the next one takes up.
"""

import logging
import os
import signal
import sys
import threading

from features.settings import Settings
from features.sink import EventSink
from serve.logs import configure


def main() -> None:
    """Drain until told to stop."""
    configure()
    logging.getLogger("features").addHandler(logging.StreamHandler(sys.stderr))
    settings = Settings.from_env()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    EventSink(settings, settings.home / "events").run(stop)


if __name__ == "__main__":
    main()
