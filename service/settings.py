"""Every setting of the service, from the environment (TIM4REC_...) or the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.state import Precision


class Settings(BaseSettings):
    """Settings of one service process; the description of each field is its documentation."""

    model_config = SettingsConfigDict(env_prefix="TIM4REC_", extra="forbid", frozen=True)

    artefact: Path = Field(description="folder of the model to serve")
    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`; auto: a GPU if there is one")
    threads: int = Field(1, ge=1, description="threads of the arithmetic in one process")

    redis_url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix:// URL; none: an embedded store in data_dir"
    )
    data_dir: Path = Field(Path("state"), description="folder of the embedded store")
    fsync: Literal["always", "everysec"] = Field(
        "always", description="when the embedded store writes its log to disk"
    )
    namespace: str = Field("tim4rec", pattern=r"^[A-Za-z0-9_.-]+$", description="prefix of keys")
    store_timeout_s: float = Field(
        2.0, gt=0, description="time for the store to answer a wave, retries included"
    )

    pool_capacity: int = Field(16_384, ge=1, description="user states kept on the device")
    max_batch: int = Field(128, ge=1, description="most requests in one wave")
    max_queue: int = Field(4096, ge=1, description="most requests waiting; more get a 503")

    snapshot_every: int = Field(64, ge=1, description="events between two snapshots of a user")
    snapshot_ttl_s: int = Field(30 * 86_400, ge=1, description="life of a snapshot")
    snapshot_precision: Precision = Field(
        "float32", description="float16 halves a snapshot, and rounds the state at each"
    )

    late_policy: Literal["clamp", "reject"] = Field(
        "clamp", description="what becomes of an event older than the user's newest"
    )
    future_tolerance_s: float = Field(
        300, ge=0, description="how far ahead of the store's clock an event may be"
    )
    dedup_window: int = Field(1000, ge=2, description="newest events of a user known by event_id")
    idle_ttl_s: int = Field(0, ge=0, description="forget users idle for so long; 0: never")
    erasure_poll_s: float = Field(
        0.25, gt=0, description="how often a process asks which users were erased elsewhere"
    )

    max_k: int = Field(1000, ge=1, description="most items one recommendation may ask for")
    max_batch_events: int = Field(1000, ge=1, description="most events of one batch request")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="comma-separated keys, one of which X-API-Key must carry; none: open"
    )

    @model_validator(mode="before")
    @classmethod
    def _split_keys(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(keys := values.get("api_keys"), str):
            return {**values, "api_keys": tuple(k.strip() for k in keys.split(",") if k.strip())}
        return values

    @model_validator(mode="after")
    def _room_for_waves(self) -> Settings:
        if self.pool_capacity < 4 * self.max_batch:
            raise ValueError(
                f"pool_capacity {self.pool_capacity} must be at least 4 x max_batch "
                f"{self.max_batch}: raise the one or lower the other"
            )
        return self

    @property
    def redis(self) -> str | None:
        return self.redis_url.get_secret_value() if self.redis_url else None
