"""A gateway in a process of its own, to be killed: `python -m tests.serve.rollout.replica ARGUMENTS PORT HELD GATE`.

Loading the version HELD says so in the file GATE and then waits for ever, as one that takes long.
"""

import asyncio
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import uvicorn

from serve.arguments import Arguments
from serve.scoring import RankingModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray declares its configuration in a way that pydantic deprecates
    from serve.app import open_gateway


async def serve(arguments: Arguments, port: int) -> None:
    """Answer until killed."""
    entrance = await open_gateway(arguments)
    await uvicorn.Server(uvicorn.Config(entrance, host="127.0.0.1", port=port, log_config=None, lifespan="on")).serve()


def main(given: str, port: str, held: str, gate: str) -> None:
    """See the module."""
    load = RankingModel.load

    def loading(path: Path, **how: Any) -> RankingModel:
        if path.name == held:
            Path(gate).write_text("loading", encoding="utf-8")
            time.sleep(600)
        return load(path, **how)

    RankingModel.load = loading  # type: ignore[method-assign,assignment]
    asyncio.run(serve(Arguments.model_validate_json(given), int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
