"""Runs one peer on a Ray of its own: `python -m loadtests.peers.host NAME --port P --temp DIR [--args JSON]`.

One JSON line on standard output says that it answers. It ends, with every process it started, when its standard input
closes (so it never outlives who started it) or on SIGTERM. Which proxy Serve uses is the environment's matter: its
flags must be set before this process starts.
"""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import FrameType

PEERS = ("noop", "naive")
LOGICAL_CPUS = 16
"""What Ray believes the machine has: a replica asks for 1 by default, and three of them must fit on a small machine."""


def serve_peer(name: str, *, port: int, temp: Path, args: Mapping[str, str], hook: str | None = None) -> None:
    """Bring a peer up on 127.0.0.1:port, say so, and keep it up until standard input closes.

    Args:
        name: one of PEERS.
        port: where its proxy listens.
        temp: Ray's folder; keep it short, Unix sockets allow about 100 characters.
        args: the application's.
        hook: import path of a function that each of Ray's workers runs first.
    """
    import ray  # noqa: PLC0415  the flags of the environment are read when it is imported
    from ray import serve  # noqa: PLC0415

    temp.mkdir(parents=True, exist_ok=True)
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=200 * 1024 * 1024,
        runtime_env={"worker_process_setup_hook": hook} if hook else None,
        _temp_dir=str(temp),
        _node_ip_address="127.0.0.1",  # Ray's own servers listen on loopback only
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        application = import_module(f"loadtests.peers.{name}").build(dict(args))
        serve.run(application, name=name, route_prefix="/")
        sys.stdout.write(json.dumps({"ready": name, "port": port, "ray": ray.__version__}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--temp", type=Path, required=True)
    parser.add_argument("--args", type=json.loads, default={}, help="the application's arguments as a JSON object")
    parser.add_argument("--hook", default=None, help="import path of a function that each worker runs first")
    options = parser.parse_args()

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    serve_peer(options.name, port=options.port, temp=options.temp, args=options.args, hook=options.hook)


if __name__ == "__main__":
    main()
