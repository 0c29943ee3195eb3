"""Where settings come from, which wins, and how a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moltbot import SettingsError, create_gateway_router
from moltbot.cli.settings import load_settings
from tests.support import check_sentence, failed, moltbot


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory for `moltbot.toml`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(**flags: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    message: str = caught.value.message
    check_sentence(message)
    return message


def test_flag_before_environment_before_file_before_default(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings({})[0].worker_count == 4
    (here / "moltbot.toml").write_text("worker_count = 5\nmax_memory = '1GB'\n")
    settings, sources = load_settings({})
    assert (settings.worker_count, sources["worker_count"]) == (5, "moltbot.toml")
    monkeypatch.setenv("MOLTBOT_WORKER_COUNT", "6")
    settings, sources = load_settings({})
    assert (settings.worker_count, sources["worker_count"]) == (
        6,
        "environment variable MOLTBOT_WORKER_COUNT",
    )
    settings, sources = load_settings({"worker_count": 7, "port": None})
    assert settings.worker_count == 7
    assert settings.max_memory == 1 << 30
    assert "port" not in sources


@pytest.mark.parametrize(
    "text",
    [
        'workerCount = 3\nmaxMemory = "64MB"\nrequestTimeout = "30s"\nallowedHosts = ["a.example"]',
        'worker_count = 3\nmax_memory = 67108864\nrequest_timeout = 30000\nallowed_hosts = "a.example"',
        'allowedHosts = "a.example"\n[workerConfig]\nworkerCount = 3\nmaxMemory = "64MB"\nrequestTimeout = 30000',
    ],
)
def test_the_file_takes_camel_case_units_and_the_nested_form(here: Path, text: str) -> None:
    (here / "moltbot.toml").write_text(text)
    settings, _ = load_settings({})
    assert (settings.worker_count, settings.max_memory, settings.request_timeout) == (3, 64 << 20, 30_000)
    assert settings.allowed_hosts == ("a.example",)


def test_units_work_in_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLTBOT_QUEUE_TIMEOUT", "1.5m")
    monkeypatch.setenv("MOLTBOT_ALLOWED_HOSTS", "a.example, b.example")
    monkeypatch.setenv("MOLTBOT_DURABLE_STATE", "true")
    settings, _ = load_settings({})
    assert settings.queue_timeout == 90_000
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.durable_state is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "wroker_count = 3",
            "unknown setting 'wroker_count' (from moltbot.toml): did you mean worker_count?",
        ),
        ("xyzzy = 1", "see `moltbot workers info`"),
        ("worker_count = 0", "worker_count = 0 (from moltbot.toml) is impossible"),
        ("worker_count = 65", "worker_count = 65"),
        ("worker_count = 2.5", "worker_count = 2.5"),
        ('maxMemory = "lots"', "max_memory = 'lots' (from moltbot.toml) is impossible: expected a size"),
        ('request_timeout = "-5s"', "must not be negative"),
        ("request_timeout = -5", "must not be negative"),
        ("request_timeout = nan", "request_timeout"),
        ("heartbeat_interval = 1", "heartbeat_interval = 1"),
        ("port = 70000", "port = 70000"),
        ('max_memory = "64MB"\nsoft_memory = "65MB"', "soft_memory must be below max_memory"),
        ('environment = ["MOLTBOT_TOKEN"]', "MOLTBOT_TOKEN"),
        ("workerConfig = 3", "workerConfig must hold settings"),
        ("[worker_count]\nx = 1", "worker_count"),
        ("worker_count = ", "moltbot.toml cannot be read"),
        ('handler = ""', "handler = ''"),
    ],
)
def test_a_wrong_setting_in_the_file_is_named_with_its_value(here: Path, text: str, says: str) -> None:
    (here / "moltbot.toml").write_text(text)
    assert says in refused()


def test_a_file_that_cannot_be_read_is_told(here: Path) -> None:
    (here / "moltbot.toml").mkdir()
    assert "moltbot.toml cannot be read" in refused()
    (here / "moltbot.toml").rmdir()
    (here / "moltbot.toml").write_bytes(b"\xff\xfe")
    assert "moltbot.toml cannot be read" in refused()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MOLTBOT_WORKERS", "3", "unknown setting 'workers' (from environment variable MOLTBOT_WORKERS)"),
        ("MOLTBOT_MAX_MEMROY", "1GB", "did you mean max_memory?"),
        ("MOLTBOT_WORKER_COUNT", "many", "(from environment variable MOLTBOT_WORKER_COUNT) is impossible"),
        ("MOLTBOT_WORKER_COUNT", "", "MOLTBOT_WORKER_COUNT"),
        ("MOLTBOT_REQUEST_TIMEOUT", "2 fortnights", "unknown unit 'fortnights'"),
    ],
)
def test_a_wrong_variable_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    assert says in refused()


def test_a_wrong_flag_is_named_as_it_was_typed(here: Path) -> None:
    result = moltbot(here, "gateway", "-w", "0")
    assert "worker_count = 0 (from -w/--workers) is" in failed(result, 2)
    result = moltbot(here, "gateway", "-t", "soon")
    assert "request_timeout = 'soon' (from -t/--timeout) is" in failed(result, 2)
    result = moltbot(here, "gateway", "--port", "70000")
    assert "port = 70000 (from --port) is" in failed(result, 2)
    assert load_settings({"sandbox_base_dir": "x"})[1] == {"sandbox_base_dir": "-s/--sandbox-dir"}
    document = json.loads(moltbot(here, "gateway", "-w", "0", "--json").stdout)
    assert document["error"]["code"] == "invalid_setting"


def test_wrong_settings_start_nothing(here: Path) -> None:
    failed(moltbot(here, "gateway", "-s", "base", MOLTBOT_WORKERCOUNT="3"), 2)
    failed(moltbot(here, "workers", "demo", "-w", "0", "-s", "base"), 2)
    failed(moltbot(here, "workers", "demo", "-t", "soon", "-s", "base"), 2)
    assert not (here / "base").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"workerCount": 0}, "worker_count = 0 (from pool_config) is impossible"),
        ({"worker_cuont": 3}, "did you mean worker_count?"),
        ({"workerConfig": {"maxConcurent": 3}}, "did you mean max_concurrent?"),
        ({"workerConfig": {"maxMemory": "lots"}}, "max_memory = 'lots'"),
        ({"workerConfig": None}, "workerConfig"),
        ({"port": 1}, "unknown setting 'port'"),
        ({"sandbox_base_dir": 3}, "sandbox_base_dir"),
        ({3: 4}, "unknown setting '3'"),
        ([1], "pool_config"),
        ("workers", "pool_config"),
    ],
)
def test_a_wrong_pool_config_is_refused_before_anything_starts(config: Any, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        create_gateway_router(pool_config=config)
    check_sentence(caught.value.message)
    assert says in caught.value.message


def test_the_guides_pool_config_is_understood() -> None:
    config = {
        "workerCount": 3,
        "sandboxBaseDir": "/tmp/somewhere",
        "workerConfig": {
            "maxConcurrent": 5,
            "requestTimeout": 60000,
            "heartbeatInterval": 5000,
            "maxMemory": 256 * 1024 * 1024,
            "maxRequests": 1000,
        },
    }
    read = create_gateway_router(pool_config=config).config
    assert (read.worker_count, read.max_concurrent, read.request_timeout) == (3, 5, 60_000)
    assert (read.heartbeat_interval, read.max_memory, read.max_requests) == (5000, 256 << 20, 1000)
    assert read.sandbox_base_dir == Path("/tmp/somewhere")
