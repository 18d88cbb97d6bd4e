"""Keeps the embedded Ray on 127.0.0.1.

By default all of Ray's ports are open to the network, and most of them run what they are sent. Ray 2.60 has settings
for most, which `environment` makes; two places have none and are dealt with here:

- each Serve replica opens a gRPC port on all interfaces: `bind_replicas` runs in each worker before that code loads;
- HAProxy's statistics and metrics ports are bound to all interfaces by Ray's template: `write_haproxy` makes the
  program that Ray starts in HAProxy's place; it corrects the configuration that Ray has written, and becomes HAProxy.

tests/deployments asserts over every listening socket of a running stack that none is left.
"""

import secrets
import shlex
from pathlib import Path
from typing import Final

from deployments.network import LOOPBACK, free_ports

HOOK: Final = "deployments.loopback.bind_replicas"
"""Import path for Ray's worker_process_setup_hook."""


def bind_replicas() -> None:
    """Make gRPC servers of this process that ask for all interfaces listen on 127.0.0.1 only."""
    from ray._common import tls_utils  # noqa: PLC0415  (runs inside Ray's workers only)

    add_port = tls_utils.add_port_to_grpc_server

    def add_local_port(server: object, address: str) -> int:
        port: int = add_port(server, address.replace("[::]", LOOPBACK).replace("0.0.0.0", LOOPBACK))  # noqa: S104
        return port

    tls_utils.add_port_to_grpc_server = add_local_port


def write_haproxy(folder: Path, binary: str) -> Path:
    """Write the program that Ray is to start as HAProxy. Ray calls it with `-db -f CONFIGURATION`.

    Args:
        folder: where to.
        binary: HAProxy itself.
    """
    program = folder / "haproxy"
    program.write_text(
        "#!/bin/sh\n"
        f"sed -i.ray -e 's/bind \\*:/bind {LOOPBACK}:/' -e 's/bind :/bind {LOOPBACK}:/' \"$3\" || exit 1\n"
        f'exec {shlex.quote(binary)} "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o700)
    return program


def environment(folder: Path, haproxy: Path) -> dict[str, str]:
    """Ray's settings: on 127.0.0.1, beside any other Ray of this machine.

    Args:
        folder: for sockets and configuration; a short path, because a socket's path ends at 107 characters.
        haproxy: the program to start as HAProxy.
    """
    metrics, stats, fallback, dashboard, autoscaler = free_ports(5)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    return {
        # Named for other systems, but it decides everywhere whether 127.0.0.1 may be a node's address; without it
        # Ray puts the machine's outer address in its place.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",  # other users of this machine can reach 127.0.0.1, too
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "DASHBOARD_METRIC_PORT": str(dashboard),
        "AUTOSCALER_METRIC_PORT": str(autoscaler),
    }
