from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from cli.main import app
from cli.settings import BEFORE_PRODUCTION, as_markdown, takes_settings
from service.environment import SettingsError, flag, read_settings, variable
from service.settings import Settings, secrets

ROOT = Path(__file__).parents[2]

OTHERS: dict[str, str] = {
    "artefact": "models/a", "device": "cuda:1", "kernels": "reference",
    "threads": "2", "retrieval": "exact",
    "models_dir": str(ROOT), "model_poll_s": "2",
    "max_trials": "3", "trial_observed_s": "3600", "trial_least_users": "10",
    "trial_longest_s": "7200", "trial_margin": "0.5", "explore_share": "0.1",
    "host": "0.0.0.0", "port": "9000", "workers": "3", "drain_s": "1.5", "shutdown_s": "20",
    "page": "false", "operations_port": "9001", "read_timeout_s": "7.5", "keep_alive_s": "90",
    "public_docs": "true", "max_body_bytes": "2048", "max_head_bytes": "4096",
    "max_buffered_bytes": "2000000", "max_header_fields": "50",
    "root_path": "/a/b", "trusted_proxies": "10.0.0.0/8, ::2", "allowed_hosts": "a.example, b",
    "redis_url": "redis://someone:hunter2@host:7000/1?password=hunter3", "data_dir": "elsewhere",
    "fsync": "everysec", "namespace": "ns", "store_timeout_s": "0.5", "store_away": "pool",
    "change_shared_settings": "true",
    "replica_acks": "1",
    "max_wait_s": "0.5", "pool_capacity": "128", "max_batch": "32", "max_queue": "7",
    "snapshot_every": "8", "snapshot_ttl_s": "60", "snapshot_precision": "float16",
    "kinds": "view:step,*:log", "late_policy": "replay", "replay_limit": "4",
    "future_tolerance_s": "2.5", "dedup_window": "10",
    "idle_ttl_s": "9", "history_limit": "9999", "erasure_poll_s": "1",
    "catalogue_poll_s": "2", "max_k": "5", "max_candidates": "8", "max_paged": "12",
    "explain_k": "4", "explain_events": "6", "max_session_events": "9",
    "max_batch_events": "6", "max_batch_items": "7", "max_item_bytes": "512",
    "max_filter_length": "11", "popular_half_life_s": "60", "popular_least": "1.5",
    "allow_open": "true", "max_weight": "2.5",
    "cors_origins": "https://shop.example, http://localhost:3000",
    "popular_items": "1000", "popular_refresh_s": "0.5", "api_keys": " hunter4, hunter5 ,,",
    "api_keys_file": __file__, "admin_keys": "hunter6", "admin_keys_file": __file__,
    "live": "false", "live_neighbours": "8", "live_users": "1000", "live_new_items": "false",
    "live_feed_events": "5000", "live_checkpoint_s": "7.5",
    "log_level": "debug", "log_format": "text", "log_requests": "all", "tracing": "true",
    "outcome_window_s": "60", "quality_sample": "0.5", "exactness_every_s": "0",
    "exactness_max_events": "3", "exactness_tolerance": "0.5",
}  # fmt: skip
"""A value for every setting that is not its default."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TIM4REC_"):
            monkeypatch.delenv(name)


def check_others(settings: Settings) -> None:
    """Every setting has the value of OTHERS."""
    for name, text in OTHERS.items():
        value = getattr(settings, name)
        if name == "redis_url":
            assert settings.redis == text
        elif name in ("api_keys", "admin_keys"):
            assert secrets(value) == [key.strip() for key in text.split(",") if key.strip()]
        elif isinstance(value, tuple):
            assert ", ".join(value) == text
        else:
            assert str(value).lower() in (text.lower(), f"{text}.0"), name
        assert value != Settings.model_fields[name].default, name


def test_the_environment_gives_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OTHERS.keys() == Settings.model_fields.keys()
    for name, value in OTHERS.items():
        monkeypatch.setenv(variable(name), value)
    check_others(read_settings())


def test_flags_give_every_setting() -> None:
    got: dict[str, Any] = {}
    command = typer.Typer()
    command.command()(takes_settings(got.update))
    given = [OTHERS["artefact"]]
    for name, value in OTHERS.items():
        if value in ("true", "false"):
            given.append(flag(name) if value == "true" else f"--no-{flag(name)[2:]}")
        elif name not in ("artefact", "data_dir"):
            given += [flag(name), value]
    result = CliRunner().invoke(command, given)
    assert result.exit_code == 0, result.output
    assert got.pop("data_dir") is None
    assert Path(got["artefact"]) == Path(OTHERS["artefact"])
    check_others(read_settings(got).model_copy(update={"data_dir": Path(OTHERS["data_dir"])}))


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIM4REC_NAMESPACE", "elsewhere")
    monkeypatch.setenv("TIM4REC_THREADS", "3")
    settings = read_settings({"artefact": "a", "namespace": "here", "threads": None})
    assert (settings.namespace, settings.threads) == ("here", 3)
    assert settings.redis is None


def test_empty_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "MAX_BATCH", "API_KEYS", "TRACING"):
        monkeypatch.setenv(f"TIM4REC_{name}", "")
    settings = read_settings({"artefact": "a", "namespace": ""})
    assert settings == Settings(artefact=Path("a"))
    assert (settings.redis, settings.max_batch, settings.api_keys) == (None, 128, ())
    assert settings.namespace == "tim4rec"


SECRETS = ("artefact", "redis_url", "api_keys", "admin_keys")


def test_secrets_are_not_shown() -> None:
    settings = read_settings({name: OTHERS[name] for name in SECRETS})
    shown = (repr(settings), str(settings.model_dump()), str(settings.shown()))
    assert "hunter" not in " ".join(shown)
    assert settings.shown()["redis_url"] == "redis://host:7000/1"
    assert list(settings.changed()) == list(SECRETS)
    assert (settings.shown()["api_keys"], settings.shown()["admin_keys"]) == (
        "2 hidden",
        "1 hidden",
    )


def test_workers_get_them_whole() -> None:
    settings = read_settings({name: OTHERS[name] for name in OTHERS if name != "data_dir"})
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301


@pytest.mark.parametrize(
    ("host", "keyed", "allowed", "open_"),
    [
        ("127.0.0.1", False, False, False),
        ("127.7.7.7", False, False, False),
        ("::1", False, False, False),
        ("::ffff:127.0.0.1", False, False, False),
        ("localhost", False, False, False),
        ("no-such-host.invalid", False, False, False),  # it can't be listened on
        ("0.0.0.0", False, False, True),
        ("::", False, False, True),
        ("192.0.2.7", False, False, True),
        ("fe80::1%lo", False, False, True),
        ("0", False, False, True),
        ("0.0.0.0", True, False, False),
        ("0.0.0.0", False, True, False),
    ],
)
def test_open_to_others(host: str, keyed: bool, allowed: bool, open_: bool) -> None:
    settings = read_settings({"artefact": "a", "host": host, "allow_open": allowed})
    if keyed:
        for name in ("api_keys", "api_keys_file"):
            given = {"artefact": "a", "host": host, name: OTHERS[name]}
            assert not read_settings(given).open_to_others
    else:
        assert settings.open_to_others is open_
    # A key for /admin opens nothing else, and closes nothing else.
    given = {"artefact": "a", "host": host, "allow_open": allowed, "admin_keys": "hunter6"}
    assert read_settings(given).open_to_others is (open_ or keyed)


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
        ({"artefact": "a", "port": 65536}, "port"),
        ({"artefact": "a", "log_level": "loud"}, "log_level"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(values: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(**values)  # type: ignore[arg-type]
    (fault,) = raised.value.errors()
    assert fault["loc"] == (field,)
    assert "\n" not in fault["msg"]


def test_faults_name_the_flag_or_the_variable_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIM4REC_MAX_BATCH", "many")
    monkeypatch.setenv("TIM4REC_REDIS_URL", "redis://:hunter2@host")
    with pytest.raises(SettingsError) as raised:
        read_settings({"fsync": "sometimes"})
    line = str(raised.value)
    assert "TIM4REC_ARTEFACT is not given" in line
    assert "TIM4REC_MAX_BATCH: " in line
    assert "--fsync: Input should be 'always' or 'everysec'" in line
    assert "\n" not in line
    assert "hunter2" not in line


def test_variables_of_the_learner_are_none_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIM4REC_LEARN_EVERY", "1h")
    monkeypatch.setenv("TIM4REC_ARTEFACT", "a")
    assert read_settings() is not None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("TIM4REC_MAX_BACH", "did you mean TIM4REC_MAX_BATCH?"),
        ("TIM4REC_REDIS", "did you mean TIM4REC_REDIS_URL?"),
        ("tim4rec_worker", "did you mean TIM4REC_WORKERS?"),
        ("TIM4REC_QQQ", "`tim4rec settings` lists all"),
        ("TIM4REC_SERVICE_PORT_HTTP", "enableServiceLinks: false"),
        ("TIM4REC_PORT_8000_TCP_ADDR", "enableServiceLinks: false"),
    ],
)
def test_an_unknown_variable(monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError) as raised:
        read_settings({"artefact": "a"})
    assert str(raised.value).startswith(f"{name} ")
    assert hint in str(raised.value)


def test_a_port_that_kubernetes_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIM4REC_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        read_settings({"artefact": "a"})


def test_variables_of_the_clients_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIM4REC_API_KEY", "hunter2")
    assert read_settings({"artefact": "a"}).api_keys == ()


def test_tracing_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings({"artefact": "a", "tracing": True}).tracing
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(SettingsError) as raised:
        read_settings({"artefact": "a", "tracing": True})
    assert str(raised.value) == "--tracing: needs the extra `otel`: pip install 'tim4rec[otel]'"
    assert not read_settings({"artefact": "a"}).tracing


def test_an_index_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SettingsError) as raised:
        read_settings({"artefact": "a", "retrieval": "index"})
    fix = "pip install 'tim4rec[index]'"
    assert str(raised.value) == f"--retrieval: index needs the extra `index`: {fix}"
    assert read_settings({"artefact": "a"}).retrieval == "auto"


@pytest.mark.parametrize(
    "origin",
    ["shop.example", "https://shop.example/", "https://Shop.example", "https://shop.example:443",
     "http://localhost:80", "null", "https://*.example", "https://a@shop.example"],
)  # fmt: skip
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings({"artefact": "a", "cors_origins": f"https://shop.example, {origin}"})
    assert str(raised.value).startswith(f"--cors-origins: {origin} is no origin: give https://HOST")


def test_not_every_page_may_use_a_key() -> None:
    assert read_settings({"artefact": "a", "cors_origins": "*"}).cors_origins == ("*",)
    for name in ("api_keys", "api_keys_file", "admin_keys", "admin_keys_file"):
        with pytest.raises(SettingsError, match="cors_origins: `\\*` together with keys"):
            read_settings({"artefact": "a", "cors_origins": "*", name: OTHERS[name]})
        named = {"artefact": "a", "cors_origins": "http://[::1]:3000", name: OTHERS[name]}
        assert read_settings(named).cors_origins == ("http://[::1]:3000",)


def test_the_pool_must_have_room_for_the_waves_in_flight() -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(artefact=Path("a"), pool_capacity=127, max_batch=32)
    (fault,) = raised.value.errors()
    assert "pool_capacity 127" in fault["msg"]
    assert "4 x max_batch 32" in fault["msg"]
    assert Settings(artefact=Path("a"), pool_capacity=128, max_batch=32).max_batch == 32


def test_ten_settings_are_to_be_decided_before_production() -> None:
    assert len(BEFORE_PRODUCTION) == 10
    assert list(BEFORE_PRODUCTION) == [n for n in Settings.model_fields if n in BEFORE_PRODUCTION]
    page = as_markdown()
    for name, question in BEFORE_PRODUCTION.items():
        assert f"| `{variable(name)}` | {question} |" in page


def test_every_setting_is_in_the_tables_and_in_the_help_of_serve() -> None:
    wide = {"COLUMNS": "200", "TERM": "dumb"}
    shown = CliRunner().invoke(app, ["settings"], env=wide).stdout
    page = CliRunner().invoke(app, ["settings", "--markdown"], env={"COLUMNS": "40"}).stdout
    usage = CliRunner().invoke(app, ["serve", "--help"], env=wide).stdout
    for name, field in Settings.model_fields.items():
        assert field.description, name
        for text in (shown, page):
            assert any(variable(name) in line for line in text.splitlines()), name
        if name != "artefact":
            assert f" {flag(name)} " in usage, name
            mark = "**" if name in BEFORE_PRODUCTION else ""
            assert f"| {mark}`{variable(name)}`{mark} | `{flag(name)}` |" in page
    assert page.rstrip() == as_markdown()


def test_the_page_of_settings_is_up_to_date() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert page.rstrip() == as_markdown(), "tim4rec settings --markdown > docs/settings.md"
