"""nginx with the shipped configuration, as one process on 127.0.0.1, and what its access log says."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from deployments.edge.nginx import Edge, render
from tests.browser.title import RUNGS_KBPS
from tests.conftest import free_port

NGINX: Final = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
_MEDIA: Final = re.compile(r"/(?:init-(\d+)\.mp4|seg-(\d+)-(\d+)\.m4s)$")


@dataclass(frozen=True)
class Fetch:
    """A request that nginx has answered.

    Attributes:
        uri: its path.
        status: of the answer.
        start_s: when it came, s since 1970.
        end_s: when it was answered whole.
        took_s: between the two.
        bytes: of the answer's body.
        cmsd: the guidance that came with it; empty: none.
        cmcd: what the player said, in its query.
    """

    uri: str
    status: int
    start_s: float
    end_s: float
    took_s: float
    bytes: int
    cmsd: str
    cmcd: str

    @property
    def rung(self) -> int | None:
        """Of a segment, or of what a player needs to start the rung; None for other files."""
        found = _MEDIA.search(self.uri)
        return int(found[1] or found[2]) if found else None

    @property
    def segment(self) -> int | None:
        """Number of a segment, from 1; None for other files."""
        found = _MEDIA.search(self.uri)
        return int(found[3]) if found and found[3] else None

    @property
    def mb_kbps(self) -> int | None:
        """The highest bitrate that the answer's CMSD suggests; None where it says nothing of it."""
        found = re.search(r";mb=(\d+)", self.cmsd)
        return int(found[1]) if found else None


class Nginx:
    """A running nginx.

    Attributes:
        url: its base.
    """

    def __init__(self, url: str, log: Path, errors: Path) -> None:
        self.url = url
        self._log = log
        self._errors = errors

    def fetches(self, prefix: str = "/") -> list[Fetch]:
        """What it has answered under a path, in the order of arrival."""
        lines = self._log.read_text().splitlines(keepends=True)
        fetches = [_read(json.loads(line)) for line in lines if line.endswith("\n")]
        return sorted((fetch for fetch in fetches if fetch.uri.startswith(prefix)), key=lambda fetch: fetch.start_s)

    def video(self) -> list[Fetch]:
        """The segments of the title's picture, and what starts its rungs, among them."""
        return [fetch for fetch in self.fetches() if fetch.rung is not None and fetch.rung < len(RUNGS_KBPS)]

    def segments(self) -> list[Fetch]:
        """The segments of the title's picture among them."""
        return [fetch for fetch in self.video() if fetch.segment is not None]

    @property
    def errors(self) -> str:
        """Its error log."""
        return self._errors.read_text()


def _read(line: dict[str, Any]) -> Fetch:
    return Fetch(
        uri=line["uri"],
        status=line["status"],
        start_s=line["end_s"] - line["took_s"],
        end_s=line["end_s"],
        took_s=line["took_s"],
        bytes=line["bytes"],
        cmsd=line["cmsd"],
        cmcd=parse_qs(line["query"]).get("CMCD", [""])[0],
    )


@contextmanager
def running_nginx(
    folder: Path, root: Path, playhead_port: int, *, deadline_ms: int = 2000, cdn: str = ""
) -> Iterator[Nginx]:
    """An nginx for a test.

    Args:
        folder: for its own files; made.
        root: what it serves.
        playhead_port: where it asks Playhead, on 127.0.0.1.
        deadline_ms: the longest it waits for guidance; more than is shipped, for machines that are busy with tests.
        cdn: what telemetry calls it; empty: CMCD is not mirrored.
    """
    assert NGINX is not None
    folder.mkdir()
    port, log, errors = free_port(), folder / "access.log", folder / "error.log"
    (folder / "ladders").write_text(f"~^/title/ {','.join(map(str, RUNGS_KBPS))};")
    (folder / "playhead.conf").write_text(
        render(
            Edge(
                media=str(root),
                playhead=f"127.0.0.1:{playhead_port}",
                listen=f"127.0.0.1:{port}",
                access_log=str(log),
                ladders=str(folder / "ladders"),
                deadline_ms=deadline_ms,
                cdn=cdn,
            )
        )
    )
    scratch = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    (folder / "nginx.conf").write_text(
        "daemon off; master_process off; worker_processes 1;"
        f"pid {folder}/nginx.pid; error_log {errors} info; events {{}}"
        f"http {{ {' '.join(scratch)} include {folder}/playhead.conf; }}"
    )
    process = subprocess.Popen(
        [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(errors)], stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while not _listens(port):
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline, errors.read_text()
            time.sleep(0.02)
        yield Nginx(f"http://127.0.0.1:{port}", log, errors)
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
