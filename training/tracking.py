"""The way to MLflow: opened at the first question, given up quickly, its troubles told as ours.

MLflow takes a second and some 250 MB to import and open, so that is done by the first call that needs it. It is told
not to send telemetry, and kept from writing to standard output.
"""

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import socket
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from serve.errors import PlayheadError, Unavailable

_DEFAULTS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "_MLFLOW_TELEMETRY_PRE_WARM_DATABRICKS_SDK": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # seconds; MLflow's own 120 and 7 tries make an answer of minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
_PORTS: Final = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_FILE: Final = "sqlite:///"
_CONNECT_S: Final = 3.0
_TRUSTED_S: Final = 5.0
"""How long a server that was reached is taken to be there."""

_LOCKED_S: Final = 20.0
"""How long SQLite's write lock is waited for, over all tries."""

T = TypeVar("T")


class Tracking:
    """Questions to MLflow. For more than one thread.

    Args:
        uri: of runs: http(s)://, a database's URL, or sqlite:///PATH.
        registry_uri: of versions; None: the same.
    """

    def __init__(self, uri: str, registry_uri: str | None = None) -> None:
        self.uri: Final = uri
        self.registry_uri: Final = registry_uri or uri
        self._client: Any = None
        self._lock = threading.RLock()
        self._reached_s = -math.inf

    @property
    def database(self) -> Path | None:
        """File of an embedded store; None where there is a server."""
        return Path(self.uri.removeprefix(_FILE)) if self.uri.startswith(_FILE) else None

    def ask(self, question: Callable[[Any], T]) -> T:
        """Ask a question of an MlflowClient.

        Raises:
            Unavailable: nobody is there, or MLflow does not do it; with its words.
        """
        deadline = time.monotonic() + _LOCKED_S
        while True:
            try:
                return question(self._opened())
            except PlayheadError:
                raise
            except Exception as error:
                if not _is_trouble(error):
                    raise
                if "database is locked" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                self._reached_s = -math.inf
                raise self._unavailable(" ".join(str(error).split())[:400]) from error

    def _opened(self) -> Any:
        with self._lock:
            if time.monotonic() - self._reached_s > _TRUSTED_S:
                for uri in {self.uri, self.registry_uri}:
                    self._reach(uri)
                self._reached_s = time.monotonic()
            if self._client is None:
                with _alone(self.database):
                    self._client = _open(self.uri, self.registry_uri)
            return self._client

    def _reach(self, uri: str) -> None:
        """Find out quickly whether there is somebody: MLflow itself tries for minutes.

        Raises:
            Unavailable: there is not.
        """
        parts = urlsplit(uri)
        try:
            if uri.startswith(_FILE):
                path = Path(uri.removeprefix(_FILE))
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(sqlite3.connect(path, timeout=_LOCKED_S)) as database:
                    database.execute("PRAGMA journal_mode=WAL")  # kept in the file: readers never wait for a writer
            elif parts.scheme == "http":
                httpx.get(f"{uri.rstrip('/')}/health", timeout=_CONNECT_S)  # any answer will do
            elif parts.hostname is not None:  # what a certificate must be signed by is the client's business
                port = parts.port or _PORTS.get(parts.scheme.split("+")[0], 443)
                socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
        except (sqlite3.Error, OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unavailable(str(error)) from error

    def _unavailable(self, got: str) -> Unavailable:
        where = "MLFLOW_TRACKING_URI" if self.database is None else "the registry's file"
        return Unavailable(
            field="registry",
            got=f"{shown(self.uri)}: {got}",
            expected="an MLflow registry that answers",
            next_step=f"Start it, or correct {where}. An old schema is brought up to date by: mlflow db upgrade URL.",
        )


def metric_name(name: str) -> str:
    """A metric's or parameter's name as MLflow takes it: `@` is written `_at_`, what else it refuses `_`."""
    return re.sub(r"[^\w./ :-]", "_", name.replace("@", "_at_"), flags=re.ASCII)[:250]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `a.b`; other values that are no scalars as JSON."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | None):
            found[f"{prefix}{name}"] = value
        else:
            found[f"{prefix}{name}"] = json.dumps(value, default=str)
    return found


def shown(uri: str) -> str:
    """An address without its password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """All entries of a search, page by page.

    Args:
        ask: given a page's token, gives the page.
    """
    token = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


@contextlib.contextmanager
def already() -> Iterator[None]:
    """What is to be made may be there already."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _open(uri: str, registry_uri: str) -> Any:
    """An MlflowClient whose settings are its own, not the process's."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own tables and imports: nothing that we could change
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 - a second, 190 MB

        if not uri.startswith("http"):
            from mlflow.store.db import utils as _  # noqa: F401, PLC0415 - knows all tables
            from sqlalchemy.orm import configure_mappers  # noqa: PLC0415

            configure_mappers()
        client = MlflowClient(tracking_uri=uri, registry_uri=registry_uri)
        if uri.startswith(_FILE):
            client.search_experiments(max_results=1)  # makes the tables where there are none
        return client


@contextlib.contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """Hold the right to make an embedded store's tables: another process would find half of them.

    Raises:
        OSError: the folder is not writable.
    """
    if database is None:
        yield
        return
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_trouble(error: Exception) -> bool:
    """Whether an error says that the registry, its database or its files are not to be had."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from requests.exceptions import RequestException  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    return isinstance(error, MlflowException | RequestException | SQLAlchemyError | OSError)
