"""`moltbot config show | explain | check`: what is in force and why, what it means, and whether it is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trustme

from moltbot.cli.gateway import FLAGGED
from moltbot.cli.setting_table import allowed, flag, way_to_write
from moltbot.cli.settings import Settings, load_settings
from tests.gateway.test_tls import write_pair
from tests.support import failed, moltbot


def explained(directory: Path, key: str, **variables: str) -> dict[str, str]:
    return dict(json.loads(moltbot(directory, "config", "explain", key, "--json", **variables).stdout))


# --- show ------------------------------------------------------------------------------------------------


def test_show_tells_every_setting_with_value_and_source(tmp_path: Path) -> None:
    (tmp_path / "moltbot.toml").write_text(
        'maxMemory = "1GB"\nsoft_memory = "512MB"\nrateLimitUser = "60/m"\n'
    )
    result = moltbot(tmp_path, "config", "show", MOLTBOT_WORKER_COUNT="3")
    assert (result.returncode, result.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[1:] if line.strip()}
    assert rows["max_memory"] == ["1GB", "moltbot.toml"]
    assert rows["soft_memory"] == ["512MB", "moltbot.toml"]
    assert rows["rate_limit_user"] == ["60/m", "moltbot.toml"]
    assert rows["worker_count"] == ["3", "environment", "variable", "MOLTBOT_WORKER_COUNT"]
    assert rows["port"] == ["18789", "default"]
    assert rows.keys() >= Settings.model_fields.keys()


def test_show_as_json(tmp_path: Path) -> None:
    document = json.loads(moltbot(tmp_path, "config", "show", "--json", MOLTBOT_MAX_MEMORY="1GB").stdout)
    assert [setting["name"] for setting in document["settings"]] == list(Settings.model_fields)
    [memory] = [setting for setting in document["settings"] if setting["name"] == "max_memory"]
    assert (memory["default"], memory["value"]) == ("512MB", "1GB")
    assert memory["source"] == "environment variable MOLTBOT_MAX_MEMORY"


# --- explain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["max_memory", "maxMemory", "MOLTBOT_MAX_MEMORY"])
def test_explain_tells_all_that_is_known_of_a_setting(tmp_path: Path, key: str) -> None:
    assert explained(tmp_path, key, MOLTBOT_MAX_MEMORY="1GB") == {
        "name": "max_memory",
        "meaning": "Memory limit of a worker's processes before it is killed and restarted",
        "default": "512MB",
        "value": "1GB",
        "source": "environment variable MOLTBOT_MAX_MEMORY",
        "allowed": "at least 16MB",
        "written": 'a size: 1048576 (bytes), "64KB", "512MB", "1GB"; 1KB is 1024 bytes',
        "file": "max_memory = ..., or maxMemory = ..., in moltbot.toml",
        "environment": "MOLTBOT_MAX_MEMORY",
        "flag": "none",
    }


def test_explain_for_people(tmp_path: Path) -> None:
    text = moltbot(tmp_path, "config", "explain", "request_timeout").stdout
    assert text.startswith("request_timeout\n")
    for words in ("2m", "at least 1ms", "-t/--timeout", "MOLTBOT_REQUEST_TIMEOUT", '"30s"', "requestTimeout"):
        assert words in text


@pytest.mark.parametrize(("key", "near"), [("max_memroy", "max_memory"), ("workerCuont", "worker_count")])
def test_explain_of_what_is_no_setting_names_the_nearest(tmp_path: Path, key: str, near: str) -> None:
    assert f"did you mean {near}?" in failed(moltbot(tmp_path, "config", "explain", key), 2)


def test_explain_works_where_a_setting_is_wrong(tmp_path: Path) -> None:
    facts = explained(tmp_path, "max_memory", MOLTBOT_MAX_MEMORY="lots")
    assert facts["value"] == "none"
    assert "max_memory = 'lots'" in facts["source"]


@pytest.mark.parametrize(
    ("name", "possible", "written"),
    [
        ("worker_count", "1 to 64", "a whole number"),
        ("max_users", "at least 1", "a whole number"),
        ("soft_memory", "at least 8MB", "a size"),
        ("rate_limit_user", "any", "requests per time"),
        ("log_format", "one of text, json", "text"),
        ("durable_state", "true or false", "true or false"),
        ("read_only_paths", "any", "a list"),
        ("token_file", "any", "a path"),
        ("worker_uids", "any", "a range"),
    ],
)
def test_ranges_and_ways_to_write(name: str, possible: str, written: str) -> None:
    field = Settings.model_fields[name]
    assert allowed(field) == possible
    assert way_to_write(field).startswith(written)


def test_the_flags_are_those_of_the_command(tmp_path: Path) -> None:
    text = moltbot(tmp_path, "gateway", "--help").stdout
    for name in FLAGGED:
        for word in flag(name).split("/"):
            assert f"{word} " in text or f"{word}," in text, name
    assert flag("max_memory") == "none"


# --- check -----------------------------------------------------------------------------------------------


def test_check_says_what_it_read(tmp_path: Path) -> None:
    assert moltbot(tmp_path, "config", "check").stdout.startswith("All right: no moltbot.toml here, ")
    (tmp_path / "moltbot.toml").write_text("worker_count = 3\n")
    result = moltbot(tmp_path, "config", "check", MOLTBOT_MAX_MEMORY="1GB")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "All right: 1 setting from moltbot.toml, 1 setting from the environment (MOLTBOT_MAX_MEMORY); "
        "the others are defaults.\n"
    )


def test_check_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "moltbot.toml").write_text("nonsense = 1\n")
    (tmp_path / "other.toml").write_text("worker_count = 3\n")
    result = moltbot(tmp_path, "config", "check", "other.toml")
    assert result.stdout.startswith("All right: 1 setting from other.toml, ")
    (tmp_path / "other.toml").write_text("worker_count = 0\n")
    line = failed(moltbot(tmp_path, "config", "check", "other.toml"), 2)
    assert "worker_count = 0 (from other.toml) is impossible: it must be at least 1" in line
    (tmp_path / "other.toml").write_text("worker_count = \n")
    assert "other.toml cannot be read" in failed(moltbot(tmp_path, "config", "check", "other.toml"), 2)
    assert "there is no file 'none.toml'" in failed(moltbot(tmp_path, "config", "check", "none.toml"), 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("worker_cuont = 3", "did you mean worker_count?"),
        ('handler = "no_such.py"', "handler names 'no_such.py' (from moltbot.toml), but it does not exist"),
        ('tls_cert = "here"\ntls_key = "no.pem"', "tls_key names 'no.pem'"),
        ('tls_cert = "no.pem"\ntls_key = "here"', "tls_cert names 'no.pem'"),
        ('read_only_paths = ["/no/such/place"]', "read_only_paths names '/no/such/place'"),
        ('read_write_paths = "/no/such/place"', "read_write_paths names '/no/such/place'"),
        ('worker_command = "no-such-program x"', "there is no such program"),
        ('token_file = "no.token"', "no.token cannot be read"),
        ('token_file = "here"', "others can read here"),
    ],
)
def test_check_names_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "here").touch(mode=0o644)
    (tmp_path / "here").chmod(0o644)
    (tmp_path / "moltbot.toml").write_text(text)
    result = moltbot(tmp_path, "config", "check")
    assert says in failed(result, 2)
    assert result.stdout == ""


def test_check_is_content_with_files_that_are_there(tmp_path: Path) -> None:
    for name in ("h.py", "token"):
        (tmp_path / name).write_text("sixteen-characters-or-more")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "moltbot.toml").write_text(
        f'handler = "h.py"\ntoken_file = "token"\nread_only_paths = ["{tmp_path}"]\nworker_command = "sh -c x"\n'
        'tls_cert = "cert.pem"\ntls_key = "key.pem"\n'
    )
    write_pair(tmp_path, trustme.CA())
    assert moltbot(tmp_path, "config", "check").stdout.startswith("All right: 6 settings from moltbot.toml, ")
    (tmp_path / "moltbot.toml").write_text('handler = "some.module:name"\n')
    assert moltbot(tmp_path, "config", "check").returncode == 0


def test_check_tells_a_variable_that_workers_shall_get_and_that_is_not_set(tmp_path: Path) -> None:
    (tmp_path / "moltbot.toml").write_text('environment = ["SET_FOR_THEM", "NOT_SET_AT_ALL"]\n')
    result = moltbot(tmp_path, "config", "check", SET_FOR_THEM="1")
    assert result.returncode == 0
    assert "environment names NOT_SET_AT_ALL, which is not set here" in result.stdout
    assert "SET_FOR_THEM" not in result.stdout


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"worker_count": 0}, "worker_count = 0 (from -w/--workers) is impossible: it must be at least 1"),
        ({"port": 70000}, "it must be at most 65535"),
        ({"max_memory": "1MB"}, "it must be at least 16MB"),
        ({"soft_memory": "1MB"}, "it must be at least 8MB"),
        ({"heartbeat_interval": "1ms"}, "it must be at least 50ms"),
        ({"max_users": 0}, "it must be at least 1"),
        ({"log_format": "xml"}, "it must be 'text' or 'json'"),
        ({"max_requests": "many"}, "it must be a valid integer"),
    ],
)
def test_a_range_is_told_as_one_would_type_it(values: dict[str, object], says: str) -> None:
    with pytest.raises(Exception, match="is impossible") as caught:
        load_settings(values)
    assert says in str(caught.value)
