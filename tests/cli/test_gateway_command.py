"""`moltbot gateway` as a process, and the commands that talk to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes import PATIENCE, watch
from tests.support import BEHAVIOURS, Running, command, environment, failed, moltbot, stage


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def gateway(home: Path) -> Iterator[Running]:
    """One gateway with the built-in handlers; its base directory is `home / "base"`."""
    with Running(home, "-w", "2", "-s", str(home / "base")) as running:
        yield running


def test_what_it_tells_at_its_start_is_true(gateway: Running, home: Path) -> None:
    document = gateway.document
    assert document["pid"] == gateway.process.pid
    assert document["directory"] == str(home / "base")
    assert document["status"]["healthyWorkers"] == 2
    assert all(psutil.pid_exists(pid) for pid in gateway.pids)


def test_send_prints_the_answer_and_tells_the_worker_apart_from_it(gateway: Running, home: Path) -> None:
    result = moltbot(home, "send", "ada", "hello", "-s", "base")
    assert result.returncode == 0
    assert result.stdout == "worker-1 here, turn 1 with you. You said: hello\n"
    assert result.stderr.startswith("(worker-1, ")


def test_send_as_json_is_the_reply(gateway: Running, home: Path) -> None:
    result = moltbot(home, "send", "json user", "hello", "-s", "base", "--json")
    reply = json.loads(result.stdout)
    assert (reply["success"], reply["userId"]) == (True, "json user")
    assert reply["payload"].endswith("You said: hello")


def test_send_of_another_type(gateway: Running, home: Path) -> None:
    result = moltbot(home, "send", "ben", "whoami", "--type", "command", "-s", "base", "--json")
    assert json.loads(result.stdout)["payload"]["userId"] == "ben"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["", "hello"], "userId is empty"),
        (["ada", "nonsense", "--type", "command"], "unknown command 'nonsense'"),
        (["ada", "hello", "--type", "nothing"], "no handler answers type 'nothing'"),
        (["x" * 513, "hello"], "513 bytes"),
    ],
)
def test_a_refused_message_is_one_line(gateway: Running, home: Path, words: list[str], says: str) -> None:
    assert says in failed(moltbot(home, "send", *words, "-s", "base"), 1)


def test_send_takes_a_whole_payload(gateway: Running, home: Path) -> None:
    words = ["send", "eve", "--type", "session", "-s", "base", "--json", "--payload"]
    moltbot(home, *words, '{"op": "set", "key": "k", "value": [1, null]}')
    reply = json.loads(moltbot(home, *words, '{"op": "get", "key": "k"}').stdout)
    assert reply["payload"] == [1, None]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give the message, or --payload"),
        (["hello", "--payload", "{}"], "not both"),
        (["--payload", "{"], "this is not JSON"),
        (["--payload", "[" * 100_000], "this is not JSON"),
        (["hello", "there"], "there"),
    ],
)
def test_send_of_no_text_or_too_much_is_wrong_usage(tmp_path: Path, words: list[str], says: str) -> None:
    result = moltbot(tmp_path, "send", "ada", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: " in result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_streamed_plays_no_tricks_on_a_terminal(gateway: Running, home: Path) -> None:
    text = "one\n\ttwo \x1b]0;title\x07 \x9b31m \u202e \u00a0\u200d ü"
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            command("send", "tty", text, "-s", "base"),
            cwd=home,
            env=environment(home, PYTHONUTF8="1"),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
        )
        assert process.wait(PATIENCE) == 0
        shown = os.read(ours, 4096).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)
    assert "one\n\ttwo \\x1b]0;title\\x07 \\x9b31m \\u202e \u00a0\u200d ü\n" in shown
    assert text in moltbot(home, "send", "pipe", text, "-s", "base", PYTHONUTF8="1").stdout


def test_where_tells_the_worker_and_the_directories(gateway: Running, home: Path) -> None:
    moltbot(home, "send", "a/b", "hello", "-s", "base")
    result = moltbot(home, "users", "where", "a/b", "-s", "base")
    assert result.returncode == 0
    assert result.stdout.startswith("'a/b' lives on worker-")
    assert str(home / "base" / "worker-") in result.stdout
    receipt = json.loads(moltbot(home, "users", "where", "a/b", "-s", "base", "--json").stdout)
    assert (receipt["userId"], receipt["epoch"]) == ("a/b", 1)
    assert Path(receipt["directories"]["sessions"]).name == "a%2fb"


def test_where_a_stranger_lives_is_not_known(gateway: Running, home: Path) -> None:
    assert "'stranger' has no worker yet" in failed(
        moltbot(home, "users", "where", "stranger", "-s", "base"), 1
    )


def test_status_shows_every_worker(gateway: Running, home: Path) -> None:
    result = moltbot(home, "workers", "status", "-s", "base")
    assert result.returncode == 0
    assert result.stdout.startswith("2 of 2 workers ready")
    assert "worker-0  ready" in result.stdout
    document = json.loads(moltbot(home, "workers", "status", "-s", "base", "--json").stdout)
    assert [worker["pid"] for worker in document["workers"]] == gateway.pids


def test_the_address_and_token_may_be_given_in_three_ways(gateway: Running, home: Path) -> None:
    url, token = gateway.document["url"], (home / "base" / "token").read_text().strip()
    ways: list[tuple[list[str], dict[str, str]]] = [
        (["--url", url, "--token-file", str(home / "base" / "token")], {}),
        ([], {"MOLTBOT_URL": url, "MOLTBOT_TOKEN": token}),
        ([], {"MOLTBOT_SANDBOX_BASE_DIR": str(home / "base")}),
    ]
    for words, variables in ways:
        assert moltbot(home, "workers", "status", *words, **variables).returncode == 0
    wrong = moltbot(home, "workers", "status", "--url", url, MOLTBOT_TOKEN="x" * 20)
    assert "MOLTBOT_TOKEN is not valid there" in failed(wrong, 1)


def test_a_second_gateway_on_the_same_directory_is_refused_by_pid(gateway: Running, home: Path) -> None:
    result = moltbot(home, "gateway", "-s", "base", "--port", "0")
    line = failed(result, 1)
    assert (
        f"in use by the running gateway with pid {gateway.process.pid} at {gateway.document['url']}" in line
    )
    assert moltbot(home, "workers", "status", "-s", "base").returncode == 0


def test_a_taken_port_is_refused_with_its_holder(gateway: Running, home: Path) -> None:
    port = gateway.document["url"].rpartition(":")[2]
    line = failed(moltbot(home, "gateway", "-s", "other", "--port", port), 1)
    assert f"port {port} is taken by" in line
    assert f"(pid {gateway.process.pid})" in line
    assert not (home / "other").exists()


def test_stderr_stays_empty_while_all_is_well(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base") as gateway:
        assert moltbot(tmp_path, "send", "ada", "hello", "-s", "base").returncode == 0
        status, out, err = gateway.end(signal.SIGTERM)
    assert (status, out, err) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: int) -> None:
    with Running(tmp_path, "-w", "2", "-s", "base") as gateway:
        watched = watch(*gateway.pids)
        assert gateway.end(number)[0] == 0
        assert [process.pid for process in watched if not process.gone()] == []
    assert not (tmp_path / "base" / "gateway.json").exists()
    assert (tmp_path / "base" / "moltbot.db.backup").exists()
    assert not (tmp_path / "base" / "moltbot.db-wal").exists()


def test_a_second_signal_ends_it_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    with Running(tmp_path, "-w", "1", "-s", "base", "--handler", BEHAVIOURS) as gateway:
        watched = watch(*gateway.pids)
        client = subprocess.Popen(
            [
                *("curl", "-sN", "-X", "POST", "-H", "Content-Type: application/json", "-H"),
                f"Authorization: Bearer {(tmp_path / 'base' / 'token').read_text().strip()}",
                *("-d", json.dumps({"type": "hold", "userId": "ada", "payload": {"stage": str(at)}})),
                gateway.document["url"] + "/api/route",
            ]
        )
        while "begin ada 0" not in (at / "log").read_text():
            assert client.poll() is None
        gateway.process.send_signal(signal.SIGINT)
        while moltbot(tmp_path, "send", "ben", "x", "-s", "base").stderr.find("stopping") < 0:
            assert gateway.process.poll() is None
        assert gateway.end(signal.SIGINT)[0] in (-signal.SIGINT, 130)
        assert [process.pid for process in watched if not process.gone()] == []
        client.wait(PATIENCE)


def test_text_for_people_names_address_directory_and_token(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("gateway", "--port", "0", "-w", "1", "-s", "base"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl+C" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=PATIENCE)
    text = "".join(lines)
    assert "Listening on http://127.0.0.1:" in text
    assert str(tmp_path / "base" / "token") in text
    assert "Stopping; 0 requests still run." in rest
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no handler file"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "registers no handler"),
        ("import os; os._exit(9)", "exit status 9"),
        ("raise SystemExit(1)", "SystemExit"),
    ],
)
def test_a_handler_that_does_not_load_is_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "my_handler.py").write_text(content)
    result = moltbot(
        tmp_path, "gateway", "-w", "1", "-s", "base", "--port", "0", "--handler", "my_handler.py"
    )
    line = failed(result, 1)
    assert result.stdout == ""
    assert line.startswith("moltbot: worker-0 cannot boot")
    assert says in line


def test_the_default_directory_is_the_users_own(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1") as gateway:
        directory = Path(gateway.document["directory"])
        assert directory.is_relative_to(tmp_path)
        assert directory.stat().st_mode & 0o777 == 0o700
        assert moltbot(tmp_path, "workers", "status").returncode == 0


def test_a_closed_stdin_does_not_matter(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            "sh",
            "-c",
            'exec "$@" <&-',
            "sh",
            *command("gateway", "--port", "0", "-w", "1", "-s", "base", "--json"),
        ],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "}\n":
            break
    result = moltbot(tmp_path, "send", "ada", "hello", "-s", "base")
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE)
    assert result.returncode == 0, result.stderr + err
    assert process.returncode == 0


def test_port_zero_prints_the_port_it_took(gateway: Running) -> None:
    host, port = gateway.document["url"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        assert int(port) > 0
    assert os.path.exists(gateway.document["directory"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_before_it_listens_ends_it_with_one_line(tmp_path: Path, number: int, status: int) -> None:
    at = stage(tmp_path / "stage")
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\npathlib.Path({str(at / 'loading')!r}).touch()\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        command("gateway", "--port", "0", "-w", "1", "-s", "base", "--handler", "slow.py"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (at / "loading").exists():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (status, "", "Stopped before it was listening.\n")
    assert not (tmp_path / "base" / "gateway.json").exists()


def test_one_request_that_still_runs_is_told_in_the_singular(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    process = subprocess.Popen(
        command("gateway", "--port", "0", "-w", "1", "-s", "base", "--handler", BEHAVIOURS),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl+C" in line:
            break
    payload = json.dumps({"stage": str(at)})
    client = subprocess.Popen(
        command("send", "ada", "--type", "hold", "--payload", payload, "-s", "base"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while "begin ada 0" not in (at / "log").read_text():
        assert client.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("Stopping; 1 request still runs. Press")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    client.wait(PATIENCE)


def test_what_was_logged_while_it_started_is_shown_once_it_listens(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base", "--host", "0.0.0.0") as gateway:
        status, _, err = gateway.end(signal.SIGTERM)
    assert status == 0
    assert "WARNING moltbot.gateway listening on all addresses" in err
