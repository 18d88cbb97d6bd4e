"""A real HTTP server whose delays and faults are known: `python known_server.py PORT`."""

import asyncio
import sys
import time

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

seen: dict[str, int] = {}


async def delay(request: Request) -> Response:
    await asyncio.sleep(float(request.query_params.get("ms", "0")) / 1e3)
    return JSONResponse({"degraded": []})


async def status(request: Request) -> Response:
    return JSONResponse({"title": "as asked"}, status_code=request.path_params["code"])


async def stall(request: Request) -> Response:
    """Answers at once, but the 100th request blocks the whole server for a second."""
    seen["stall"] = seen.get("stall", 0) + 1
    if seen["stall"] == 100:
        time.sleep(1.0)  # noqa: ASYNC251  blocking is what the test is about
    return JSONResponse({"degraded": []})


async def text(request: Request) -> Response:
    return Response("<html>no JSON</html>")


async def degraded(request: Request) -> Response:
    return JSONResponse({"degraded": ["features_timeout"]})


async def event(request: Request) -> Response:
    for one in (await request.json())["events"]:
        seen[one["event_id"]] = seen.get(one["event_id"], 0) + 1
        if not isinstance(one["ts"], int):
            return JSONResponse({"field": "ts"}, status_code=422)
    return JSONResponse({"accepted": 1})


async def counts(request: Request) -> Response:
    return JSONResponse(seen)


app = Starlette(
    routes=[
        Route("/delay", delay),
        Route("/status/{code:int}", status),
        Route("/stall", stall),
        Route("/text", text),
        Route("/degraded", degraded),
        Route("/v1/events", event, methods=["POST"]),
        Route("/v1/home", degraded),
        Route("/v1/titles/{title_id}/similar", delay),
        Route("/healthz", delay),
        Route("/counts", counts),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
