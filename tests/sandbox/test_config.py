"""The settings: the names and defaults of the guide, the ways to write them, and refusals that a person understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from moltbot.core.errors import SettingsError
from moltbot.sandbox.config import PoolConfig

MINUTE = 60_000
DEFAULTS = {
    # the guide's own table
    "worker_count": 4,
    "sandbox_base_dir": Path("/tmp/moltbot-workers"),
    "max_concurrent": 10,
    "request_timeout": 120_000,
    "heartbeat_interval": 5_000,
    "max_memory": 512 << 20,
    "max_requests": 10_000,
    "restart_delay": 1_000,
    "max_restart_attempts": 5,
    "restart_window": 60_000,
    # what stands beside it
    "user_concurrency": 1,
    "max_queue_per_user": 32,
    "max_queue_per_worker": 1_000,
    "queue_timeout": 2 * MINUTE,
    "boot_timeout": 30_000,
    "drain_timeout": 30_000,
    "max_loop_lag": 15_000,
    "user_idle_timeout": 30 * MINUTE,
    "max_open_files": 1_024,
}


def read(**values: Any) -> PoolConfig:
    return PoolConfig.read(values)


def refusal(values: dict[str, Any], source: str = "pool_config") -> str:
    with pytest.raises(SettingsError) as caught:
        PoolConfig.read(values, source=source)
    assert caught.value.code == "invalid_setting"
    return str(caught.value)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_the_guide(name: str) -> None:
    assert getattr(PoolConfig.read(None), name) == DEFAULTS[name]


def test_a_worker_is_recycled_at_eighty_percent_of_its_memory() -> None:
    assert read().soft_memory_bytes == (512 << 20) * 8 // 10
    assert read(max_memory="100MB", soft_memory="50MB").soft_memory_bytes == 50 << 20


# --- ways to write them --------------------------------------------------------------------------------------


def test_the_guides_own_configuration_is_read() -> None:
    config = PoolConfig.read(
        {
            "workerCount": 3,
            "sandboxBaseDir": "/tmp/moltbot-workers",
            "workerConfig": {
                "maxConcurrent": 10,
                "requestTimeout": 60000,
                "heartbeatInterval": 5000,
                "maxMemory": 256 * 1024 * 1024,
                "maxRequests": 5000,
            },
        }
    )
    assert (config.worker_count, config.request_timeout) == (3, 60_000)
    assert (config.max_memory, config.max_requests) == (256 << 20, 5000)


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_may_be_written_in_camel_case(name: str) -> None:
    first, *rest = name.split("_")
    camel = first + "".join(word.capitalize() for word in rest)
    value = "/x" if name == "sandbox_base_dir" else 20_000_000 if name == "max_memory" else 64
    assert read(**{camel: value}) == read(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("request_timeout", "2m", 120_000),
        ("request_timeout", "1.5s", 1_500),
        ("request_timeout", "250", 250),
        ("request_timeout", 250, 250),
        ("max_memory", "1GB", 1 << 30),
        ("max_memory", "512mb", 512 << 20),
        ("max_memory", str(64 << 20), 64 << 20),
        ("worker_count", "3", 3),
        ("environment", "LANG, TERM", ("LANG", "TERM")),
        ("environment", ["LANG"], ("LANG",)),
        ("worker_command", "node worker.js", ("node", "worker.js")),
    ],
)
def test_values_may_have_units_and_come_as_text(name: str, value: object, meant: object) -> None:
    assert getattr(read(**{name: value}), name) == meant


def test_what_is_read_already_stays_as_it_is() -> None:
    config = read(workerCount=2)
    assert PoolConfig.read(config) is config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        read().worker_count = 5  # type: ignore[misc]


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("workerCnt", "worker_count"),
        ("workers_count", "worker_count"),
        ("maxMem", "max_memory"),
        ("sandboxDir", "sandbox_base_dir"),
        ("heartbeat", "heartbeat_interval"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    message = refusal({name: 1}, source="moltbot.toml")
    assert "unknown setting" in message
    assert "moltbot.toml" in message
    assert f"did you mean {nearest}?" in message


def test_an_unknown_setting_inside_worker_config_is_refused_too() -> None:
    assert "did you mean max_concurrent?" in refusal({"workerConfig": {"maxConcurent": 1}})


def test_a_name_like_no_other_says_where_all_names_are() -> None:
    assert "for all of them" in refusal({"zzzzzzzz": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worker_count", 0),
        ("worker_count", 65),
        ("worker_count", "many"),
        ("request_timeout", -1),
        ("request_timeout", "-5s"),
        ("request_timeout", 0),
        ("request_timeout", True),
        ("request_timeout", "2 weeks"),
        ("heartbeat_interval", 49),
        ("max_memory", "lots"),
        ("max_memory", 1024),
        ("max_concurrent", 0),
        ("max_requests", 0),
        ("restart_delay", -1),
        ("max_restart_attempts", -1),
        ("user_concurrency", 0),
        ("max_queue_per_user", -1),
        ("max_open_files", 3),
        ("durable_state", "perhaps"),
        ("handler", ""),
        ("worker_command", []),
    ],
)
def test_an_impossible_value_is_refused_in_one_sentence_with_name_value_and_source(
    name: str, value: object
) -> None:
    message = refusal({name: value}, source="MOLTBOT_SETTING")
    assert message.startswith(f"{name} = ")
    assert repr(value) in message
    assert "(from MOLTBOT_SETTING)" in message
    assert "\n" not in message
    assert "validation error" not in message


def test_a_name_in_camel_case_is_shown_as_the_setting_it_is() -> None:
    assert refusal({"workerCount": 0}).startswith("worker_count = 0 (from pool_config) is impossible: ")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"soft_memory": "512MB"}, "soft_memory must be below max_memory"),
        ({"soft_memory": "64MB", "max_memory": "32MB"}, "soft_memory must be below max_memory"),
        ({"environment": ["MOLTBOT_TOKEN"]}, "environment must not name MOLTBOT_TOKEN"),
        ({"environment": ["LANG", "moltbot_x"]}, "environment must not name moltbot_x"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values: dict[str, Any], says: str) -> None:
    message = refusal(values, source="moltbot.toml")
    assert says in message
    assert "(from moltbot.toml)" in message


def test_worker_config_that_holds_no_settings_is_refused() -> None:
    assert "workerConfig must hold settings" in refusal({"workerConfig": 5})


def test_a_hostile_value_is_shown_escaped_and_short() -> None:
    message = refusal({"max_memory": "\x1b[31m" + "9" * 10_000})
    assert "\x1b" not in message
    assert len(message) < 300
