"""Fill in the nginx configuration beside this module.

    python -m deployments.edge.nginx --media /srv/media --listen 80 > /etc/nginx/conf.d/playhead.conf

Where Playhead asks for a token, PLAYHEAD_API_TOKEN holds it and the result repeats it: keep that file from others' eyes
(mode 600; nginx reads it as root).
"""

import argparse
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from serve.arguments import TOKEN_VARIABLE
from serve.errors import InvalidInput

_TEMPLATE: Final = Path(__file__).with_name("nginx.conf")
_SAFE: Final = r"[A-Za-z0-9_./:\[\]@%+~-]+"
"""What a value may hold: nothing that ends a directive or starts a variable."""


@dataclass(frozen=True)
class Edge:
    """An edge.

    Attributes:
        media: folder whose files are served.
        playhead: host:port of Playhead's ingress.
        listen: port, or address:port.
        access_log: where requests are logged, one JSON object each.
        ladders: file of lines such as `~^/title/ 240,500,950;`, for titles whose rungs Playhead cannot look up by the
            player's content id; empty: none. Without a ladder Playhead makes one of what players say, and those under
            `mb` say less and less (docs/players.md).
        cdn: what telemetry calls this edge's network; with it what players say with media requests (CMCD in the query
            or in headers) goes to Playhead as telemetry, too. Empty: it does not, as suits players that report by
            themselves (event mode).
        deadline_ms: the longest a segment waits for Playhead, milliseconds, 1 to 10,000.
        token: what Playhead is asked with; empty where it needs none.
    """

    media: str
    playhead: str = "127.0.0.1:8000"
    listen: str = "127.0.0.1:8080"
    access_log: str = "/var/log/nginx/playhead.log"
    ladders: str = ""
    cdn: str = ""
    deadline_ms: int = 100
    token: str = ""


def render(edge: Edge) -> str:
    """The configuration, for nginx's http level.

    Raises:
        InvalidInput: a value holds what nginx would read as something else, or the deadline is out of range.
    """
    for field in fields(edge):
        value = str(getattr(edge, field.name))
        if value and not re.fullmatch(_SAFE, value):
            raise InvalidInput(
                field=field.name,
                got=value if field.name != "token" else "a token with other characters",
                expected="letters, digits and . _ / : [ ] @ % + ~ -",
                next_step="Name it otherwise.",
            )
    if not 1 <= edge.deadline_ms <= 10_000:
        raise InvalidInput(
            field="deadline_ms",
            got=edge.deadline_ms,
            expected="1 to 10,000 milliseconds",
            next_step="100 suits an edge beside Playhead.",
        )
    values = {
        "MEDIA": edge.media,
        "PLAYHEAD": edge.playhead,
        "LISTEN": edge.listen,
        "ACCESS_LOG": edge.access_log,
        "LADDERS": f"include {edge.ladders};" if edge.ladders else "",
        "CDN": edge.cdn,
        "MIRROR": "mirror /playhead/telemetry;" if edge.cdn else "",
        "DEADLINE_MS": str(edge.deadline_ms),
        "AUTHORIZATION": f"Bearer {edge.token}" if edge.token else "",
    }
    return re.sub(r"\$\{([A-Z_]+)\}", lambda name: values[name[1]], _TEMPLATE.read_text())


def main() -> None:
    """Print the configuration that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.edge.nginx", description="Print an edge's configuration."
    )
    parser.add_argument("--media", required=True, help="folder whose files are served")
    parser.add_argument("--playhead", default=Edge.playhead, help="host:port of Playhead's ingress (%(default)s)")
    parser.add_argument("--listen", default=Edge.listen, help="port or address:port (%(default)s)")
    parser.add_argument("--access-log", default=Edge.access_log, help="JSON lines (%(default)s)")
    parser.add_argument("--ladders", default=Edge.ladders, help="nginx map of titles to rungs, kbit/s (none)")
    parser.add_argument(
        "--cdn", default=Edge.cdn, help="mirror CMCD as telemetry, named as of this network (no mirror)"
    )
    parser.add_argument("--deadline-ms", type=int, default=Edge.deadline_ms, help="longest wait (%(default)s)")
    given = vars(parser.parse_args())
    try:
        print(render(Edge(**given, token=os.environ.get(TOKEN_VARIABLE, ""))), end="")
    except InvalidInput as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
