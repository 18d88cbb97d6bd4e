"""What the serving application can be told: by the `args` of a Serve config, the environment, or a test."""

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from features.settings import Settings
from serve.errors import InvalidInput
from serve.exploration import MOST_EPSILON
from serve.gateway.entrance import EntranceSettings
from serve.logs import RequestLogSettings
from serve.quality.jobs import QualityLimits
from serve.schemas import MAX_ITEMS

TOKEN_VARIABLE: Final = "PLAYHEAD_API_TOKEN"  # noqa: S105 - its name, not a token


class Arguments(BaseModel):
    """How the application runs; numbers of replicas and their resources are Serve's own options.

    Attributes:
        placement: `fused` runs features, ranker and bitrate planner in the gateway's process; `split` as deployments
            of their own.
        dataset: which prepared data set is the catalogue.
        model: which model's champion ranks.
        bitrate_model: which model's champion decides bitrates.
        encode_ahead: whether a replica that took a profile's events readies its ranker for that profile's next page.
        exploration: share of home pages in which one slot is explored (docs/recommend.md); 0: none.
        exploration_slots: how many first slots of the main row may be explored.
        device: where the engines run: cpu, torch, cuda or auto.
        threads: threads of an engine.
        home: state folder; None: PLAYHEAD_HOME.
        media: the one folder whose clips may be measured; None: PLAYHEAD_MEDIA.
        quality: bounds of the quality jobs.
        steering: file of the delivery networks that players are steered to (docs/steering.md); None: none are.
        redis_url: online store; None: REDIS_URL.
        store_deadline_ms: longest wait for a profile's features; None: PLAYHEAD_STORE_DEADLINE_MS.
        stage_deadline_ms: longest wait for a stage that runs elsewhere.
        deadline_s: deadline of a request that brings none.
        listen_host: where the ingress listens; beyond loopback a token is required.
        catalogue_poll_s: how often the catalogue's file, and what was put beside it, are looked at.
        champion_poll_s: how often the champion's file is looked at.
        title_stats_poll_s: how often the titles' statistics are read.
        log_level: least level that is logged.
        log_slow_ms: requests at least this slow are logged.
        log_sample: share of ordinary requests that is logged, 0 to 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    placement: Literal["fused", "split"] = "fused"
    dataset: str = Field(default="ml-100k", pattern=r"^[A-Za-z0-9_.-]+$")
    model: str = Field(default="recommend", pattern=r"^[A-Za-z0-9_-]+$")
    bitrate_model: str = Field(default="bitrate", pattern=r"^[A-Za-z0-9_-]+$")
    encode_ahead: bool = True
    exploration: float = Field(default=0.02, ge=0, le=MOST_EPSILON)
    exploration_slots: int = Field(default=10, ge=1, le=MAX_ITEMS)
    device: Literal["cpu", "torch", "cuda", "auto"] = "cpu"
    threads: int = Field(default=1, ge=1, le=64)
    home: Path | None = None
    media: Path | None = None
    quality: QualityLimits = QualityLimits()
    steering: Path | None = None
    redis_url: str | None = None
    store_deadline_ms: float | None = Field(default=None, gt=0)
    stage_deadline_ms: float = Field(default=200.0, gt=0)
    deadline_s: float = Field(default=1.0, gt=0, le=60)
    listen_host: str = "127.0.0.1"
    catalogue_poll_s: float = Field(default=1.0, gt=0)
    champion_poll_s: float = Field(default=2.0, gt=0)
    title_stats_poll_s: float = Field(default=5.0, gt=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_slow_ms: float = Field(default=250.0, gt=0)
    log_sample: float = Field(default=0.0, ge=0, le=1)

    def settings(self, env: Mapping[str, str] = os.environ) -> Settings:
        """The shared settings: these arguments, else the environment."""
        given = {
            "PLAYHEAD_HOME": None if self.home is None else str(self.home),
            "PLAYHEAD_MEDIA": None if self.media is None else str(self.media),
            "REDIS_URL": self.redis_url,
            "PLAYHEAD_STORE_DEADLINE_MS": None if self.store_deadline_ms is None else str(self.store_deadline_ms),
        }
        return Settings.from_env({**env, **{name: value for name, value in given.items() if value is not None}})

    def entrance(self, env: Mapping[str, str] = os.environ, *, server_echoes_id: bool) -> EntranceSettings:
        """How requests are let in.

        Raises:
            InvalidInput: the service would listen beyond this machine with no token.
        """
        token = env.get(TOKEN_VARIABLE) or None
        if token is None and not _is_loopback(self.listen_host):
            raise InvalidInput(
                field=TOKEN_VARIABLE,
                got=None,
                expected=f"a token, because the service listens on {self.listen_host}",
                next_step=f"Set {TOKEN_VARIABLE}, or listen on 127.0.0.1.",
            )
        return EntranceSettings(deadline_s=self.deadline_s, token=token, server_echoes_id=server_echoes_id)

    def request_log(self) -> RequestLogSettings:
        """Which requests are logged."""
        return RequestLogSettings(slow_ms=self.log_slow_ms, sample=self.log_sample)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
