"""The OpenAPI document holds: whatever requests it allows or forbids, answers are as documented, and never a 5xx."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from features.titles import Title
from serve.arguments import Arguments
from tests.conftest import ValkeyProcess, free_port
from tests.serve.bitrate.small_policy import small_policy
from tests.serve.gateway.conftest import install_model, open_gateway, write_titles
from tests.serve.quality.small_quality import small_quality
from tests.serve.quality.small_vmaf import small_vmaf

QUALITY = [("POST", "/v1/quality"), ("GET", "/v1/quality/{job}"), ("DELETE", "/v1/quality/{job}")]
WITH_INPUT = [("GET", "/v1/home"), ("GET", "/v1/titles/{title_id}/similar"), ("POST", "/v1/events"), *QUALITY]
OPERATED = [("POST", f"/v1/models/{{name}}/{verb}") for verb in ("promote", "rollback", "pause", "shadow")]
WITH_INPUT += [
    ("GET", "/v1/outages"),
    ("GET", "/v1/models/{name}/rollout"),
    ("GET", "/v1/models/{name}/changes"),
    ("GET", "/v1/models/{name}/learning"),
    ("GET", "/v1/models/{name}/online"),
    ("GET", "/v1/models/{name}/drift"),
    *OPERATED,
    ("POST", "/v1/feedback"),
    ("GET", "/v1/feedback"),
]
STEERING = [("GET", "/v1/steering/dash"), ("GET", "/v1/steering/hls")]
TELEMETRY = [("POST", "/v1/telemetry"), ("GET", "/v1/telemetry")]
OPEN = [
    ("POST", "/v1/bitrate"),
    ("GET", "/v1/bitrate/cmsd"),
    *TELEMETRY,
    *STEERING,
]  # refuse nothing that they can make something of
WITHOUT_INPUT = [("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/v1/models")]
WITHOUT_INPUT += [("GET", "/v1/outages/stream")]
VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
TIMEOUT = "x-request-timeout-seconds"


class Server:
    """A gateway behind uvicorn, as in a replica, on a loop of its own."""

    def __init__(self, arguments: Arguments) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._arguments = arguments
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._server: uvicorn.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"{self.url}/readyz", timeout=1).raise_for_status()
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(20)

    async def _serve(self) -> None:
        port = int(self.url.rpartition(":")[2])
        entrance = await open_gateway(self._arguments)
        config = uvicorn.Config(entrance, host="127.0.0.1", port=port, log_config=None, lifespan="on")
        self._server = uvicorn.Server(config)
        await self._server.serve()


def _written_plainly(number: str) -> float:
    """JSON Schema takes 5.0 for an integer, and events do not."""
    value = float(number)
    return int(value) if value.is_integer() else value


@pytest.fixture(scope="module")
def schema(
    tmp_path_factory: pytest.TempPathFactory, small_titles: list[Title], small_artifacts: tuple[Path, Path]
) -> Iterator[Any]:
    """The document of a running gateway, whose requests go to that gateway."""
    folder = tmp_path_factory.mktemp("contract")
    write_titles(folder, small_titles)
    install_model(folder, small_artifacts[0])
    install_model(folder, small_policy(), "bitrate")
    install_model(folder, small_quality(), "quality")
    install_model(folder, small_vmaf(), "vmaf")
    store = ValkeyProcess(folder)
    store.start()
    try:
        steering = folder / "steering.json"
        steering.write_text('{"pathways": [{"id": "alpha"}, {"id": "beta"}]}')
        arguments = Arguments(dataset="small", home=folder, redis_url=store.url, media=folder, steering=steering)
        with pytest.MonkeyPatch.context() as patch, Server(arguments) as server:
            patch.setattr("serve.gateway.outages.STREAM_S", 0.01)
            yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    finally:
        store.kill()


@pytest.mark.hypothesis  # one is inside
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *[(*operation, VALID) for operation in WITH_INPUT + OPEN + WITHOUT_INPUT],
        *[(*operation, INVALID) for operation in WITH_INPUT + OPEN],
    ],
)
def test_answers_are_as_documented(schema: Any, method: str, path: str, mode: schemathesis.GenerationMode) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def answer_fits(case: schemathesis.Case) -> None:
        if method == "POST" and re.fullmatch(r"[\d.]+", str(case.headers.get(TIMEOUT, ""))):
            case.headers[TIMEOUT] = "5"  # what is not read and written before a short deadline is a 408 or 503, rightly
        if path == "/v1/events" and mode is VALID:
            case.body = json.loads(json.dumps(case.body), parse_float=_written_plainly)
            for event in case.body["events"]:
                event["ts"] = min(event["ts"], time.time_ns() // 1_000_000)  # later ones are refused, rightly
        if path == "/v1/quality" and mode is VALID and case.media_type == "application/json":
            case.body = json.loads(json.dumps(case.body), parse_float=_written_plainly)
        excluded = [negative_data_rejection] if (method, path) in OPEN else []
        if path in {"/v1/quality", "/v1/telemetry"}:
            excluded.append(positive_data_acceptance)  # the schema can't say that frames' bytes add up, or what CMCD is
        if (method, path) == ("POST", "/v1/feedback"):
            excluded.append(positive_data_acceptance)  # the schema can't say which kind needs which id
        if (method, path) in OPERATED:
            excluded.append(positive_data_acceptance)  # none of these has the operator's token
        case.call_and_validate(excluded_checks=excluded)

    answer_fits()


def test_every_route_is_tried(schema: Any) -> None:
    paths = schema.raw_schema["paths"]
    assert {(method.upper(), path) for path in paths for method in paths[path]} == {*WITH_INPUT, *OPEN, *WITHOUT_INPUT}
