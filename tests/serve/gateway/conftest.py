"""The whole gateway in one process, on a real Valkey, a small catalogue and a small model."""

import shutil
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.settings import Settings
from features.titles import Title
from serve.arguments import Arguments
from serve.artifacts import set_champion
from tests.waiting import eventually

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray declares its configuration in a way that pydantic deprecates
    from serve import app as serve_app
    from serve.app import open_gateway

OpenClient = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def write_titles(home: Path, titles: list[Title]) -> None:
    folder = home / "data" / "small"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([title.model_dump() for title in titles]), folder / ".titles.parquet")
    (folder / ".titles.parquet").replace(folder / "titles.parquet")


def install_model(home: Path, artifact: Path, name: str = "recommend") -> None:
    """Publish an artifact as a model's version and make it the champion."""
    models = home / "models"
    if not (models / name / artifact.name).exists():
        shutil.copytree(artifact, models / name / artifact.name)
    set_champion(models, name, artifact.name)


@pytest.fixture
def arguments(settings: Settings, small_titles: list[Title], small_artifacts: tuple[Path, Path]) -> Arguments:
    """Arguments of a gateway on the test's own home, Valkey, catalogue and model.

    Its deadlines are against hanging: what a busy machine answers late is no degraded page here.
    """
    write_titles(settings.home, small_titles)
    install_model(settings.home, small_artifacts[0])
    return Arguments(
        dataset="small",
        home=settings.home,
        redis_url=settings.redis_url,
        catalogue_poll_s=0.1,
        champion_poll_s=0.1,
        title_stats_poll_s=0.2,
        exploration=0,
        deadline_s=30,
        store_deadline_ms=10_000,
    )


@asynccontextmanager
async def opened(
    arguments: Arguments, *handles: object, stages: Mapping[str, object] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that runs as in a replica: background work included, ended at the end.

    Args:
        arguments: how it runs.
        handles: of the Features and Ranker deployments.
        stages: stages to put in the place of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        if stages is not None:
            create = serve_app.create
            patch.setattr(
                serve_app, "create", lambda built, *given, **named: create(replace(built, **stages), *given, **named)
            )
        entrance = await open_gateway(arguments, *handles)
    transport = httpx.ASGITransport(entrance, client=("127.0.0.1", 5))
    async with (
        entrance.app.router.lifespan_context(entrance.app),
        httpx.AsyncClient(transport=transport, base_url="http://playhead") as client,
    ):
        yield client


async def until_shown(client: httpx.AsyncClient, *lines: str) -> None:
    """Until all of them are in the metrics, which are added up once a second."""

    async def are_shown() -> bool:
        text = (await client.get("/metrics")).text
        return all(line in text for line in lines)

    await eventually(are_shown)


@pytest.fixture
def open_client() -> OpenClient:
    """Opens a gateway with the given arguments (and handles)."""
    return opened


@pytest.fixture
async def client(arguments: Arguments) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the fused gateway."""
    async with opened(arguments) as client:
        yield client
