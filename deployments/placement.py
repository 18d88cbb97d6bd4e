"""Placements: Serve configurations under deployments/serve/, completed with what only the running stack knows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from deployments import network
from serve.errors import InvalidInput

FOLDER: Final = Path(__file__).parent / "serve"
NAMES: Final = ("local", "cluster")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bindings:
    """What a running stack adds to a placement.

    Attributes:
        port: where HAProxy listens.
        home: PLAYHEAD_HOME.
        redis_url: the store.
        dataset: name of the data set that is the catalogue.
    """

    port: int
    home: Path
    redis_url: str
    dataset: str


def path_of(placement: str) -> Path:
    """File of a placement: one that comes with Playhead by its name, or any other by its path.

    Raises:
        InvalidInput: there is none.
    """
    path = FOLDER / f"{placement}.yaml" if placement in NAMES else Path(placement)
    if not path.is_file():
        raise InvalidInput(
            field="placement",
            got=placement,
            expected=f"{' or '.join(NAMES)}, or the path of a Serve configuration",
            next_step="Correct --placement.",
        )
    return path


def complete(placement: str, bindings: Bindings) -> dict[str, Any]:
    """A placement with port, addresses and data set filled in, where it does not name its own.

    Raises:
        InvalidInput: it cannot be read, or is no Serve configuration with one application.
    """
    path = path_of(placement)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        (application,) = config["applications"]
        arguments = application.setdefault("args", {})
        ingress = config.setdefault("http_options", {})
        ingress["port"] = bindings.port
        host = str(ingress.get("host", network.LOOPBACK))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            field=str(path),
            got=str(error),
            expected="a Serve configuration with one entry under `applications`",
            next_step=f"Correct the file; {FOLDER / 'local.yaml'} is an example.",
        ) from error
    filled = {"home": str(bindings.home), "redis_url": bindings.redis_url, "dataset": bindings.dataset}
    if arguments.get("steering"):
        arguments["steering"] = str(path.parent.resolve() / str(arguments["steering"]))
    application["args"] = {**filled, **arguments}
    if host != network.LOOPBACK:  # the application asks for a token there, whatever its own arguments say
        application["args"]["listen_host"] = host
    return dict(config)


def configured_url(config: dict[str, Any]) -> str:
    """Where a client of this machine reaches a completed placement."""
    return url_of(str(config["http_options"].get("host", network.LOOPBACK)), int(config["http_options"]["port"]))


def url_of(host: str, port: int) -> str:
    """URL of an ingress, as this machine reaches it."""
    everywhere = host in {"0.0.0.0", "::"}  # noqa: S104
    return f"http://{network.LOOPBACK if everywhere else host}:{port}"
