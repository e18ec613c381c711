from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TIM4REC_"):
            monkeypatch.delenv(name)


def test_the_environment_gives_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ARTEFACT": "models/a",
        "REDIS_URL": "redis://:secret@host/1",
        "MAX_BATCH": "32",
        "POOL_CAPACITY": "128",
        "LATE_POLICY": "reject",
        "FUTURE_TOLERANCE_S": "1.5",
        "SNAPSHOT_PRECISION": "float16",
        "API_KEYS": " one, two ,,",
    }.items():
        monkeypatch.setenv(f"TIM4REC_{name}", value)
    settings = Settings()  # type: ignore[call-arg]
    assert settings.artefact == Path("models/a")
    assert settings.redis == "redis://:secret@host/1"
    assert (settings.max_batch, settings.pool_capacity) == (32, 128)
    assert settings.late_policy == "reject"
    assert settings.future_tolerance_s == 1.5
    assert settings.snapshot_precision == "float16"
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIM4REC_NAMESPACE", "elsewhere")
    monkeypatch.setenv("TIM4REC_THREADS", "3")
    settings = Settings(artefact=Path("a"), namespace="here")
    assert (settings.namespace, settings.threads) == ("here", 3)
    assert settings.redis is None


def test_secrets_are_not_shown() -> None:
    settings = Settings(
        artefact=Path("a"), redis_url="redis://:hunter2@host", api_keys="hunter3,hunter4"
    )  # type: ignore[arg-type]
    assert "hunter" not in repr(settings)
    assert "hunter" not in str(settings.model_dump())


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "artefact"),
        ({"artefact": "a", "nonsense": 1}, "nonsense"),
        ({"artefact": "a", "fsync": "sometimes"}, "fsync"),
        ({"artefact": "a", "namespace": "a:b"}, "namespace"),
        ({"artefact": "a", "max_queue": 0}, "max_queue"),
        ({"artefact": "a", "store_timeout_s": "soon"}, "store_timeout_s"),
        ({"artefact": "a", "dedup_window": 1}, "dedup_window"),
        ({"artefact": "a", "snapshot_precision": "int8"}, "snapshot_precision"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(values: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(**values)  # type: ignore[arg-type]
    (fault,) = raised.value.errors()
    assert fault["loc"] == (field,)
    assert "\n" not in fault["msg"]


def test_the_pool_must_have_room_for_the_waves_in_flight() -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(artefact=Path("a"), pool_capacity=127, max_batch=32)
    (fault,) = raised.value.errors()
    assert "pool_capacity 127" in fault["msg"]
    assert "4 x max_batch 32" in fault["msg"]
    assert Settings(artefact=Path("a"), pool_capacity=128, max_batch=32).max_batch == 32
