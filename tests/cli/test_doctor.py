"""`moltbot doctor`: what it says is what a gateway then does, here and where namespaces are refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.isolation.programs import find_bwrap
from tests.fakes import PATIENCE
from tests.support import Running, command, environment, failed, moltbot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no walls elsewhere")

LEVELS = ["bubblewrap", "landlock", "directories"]
CHECKS = {
    "namespaces", "seccomp", "landlock", "cgroup", "uids", "interpreter", "network", "limits", "disk space",
}  # fmt: skip


def examined(result: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    """The document; each of its parts is told in a way a person can read."""
    assert (result.returncode, result.stderr) == (status, ""), result.stdout
    document: dict[str, Any] = json.loads(result.stdout)
    assert list(dict.fromkeys(level["level"] for level in document["levels"])) == LEVELS
    for level in document["levels"]:
        assert level["works"] is (level["whyNot"] is None)
    checks = {check["name"]: check for check in document["checks"]}
    assert set(checks) >= CHECKS
    assert all(check["detail"] and "\n" not in check["detail"] for check in document["checks"])
    return document


def works(document: dict[str, Any]) -> set[str]:
    return {level["level"] for level in document["levels"] if level["works"]}


# --- here ----------------------------------------------------------------------------------------------


def test_the_answer_comes_first_then_what_it_rests_on(tmp_path: Path) -> None:
    result = moltbot(tmp_path, "doctor")
    assert (result.returncode, result.stderr) == (0, "")
    _, answer, *lines = result.stdout.splitlines()
    document = examined(moltbot(tmp_path, "doctor", "--json"))
    settings = "(isolation = auto, min_isolation = directories)."
    assert answer.startswith(f"Workers run at isolation level {document['level']} here {settings}")
    assert ("NOT walled off" in answer) is (document["level"] == "directories")
    for check in document["checks"]:
        if not check["present"] and check["remedy"]:
            assert f"      {check['remedy']}" in lines


def test_what_it_says_is_what_a_gateway_does_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    base = tmp_path / "base"
    document = examined(moltbot(tmp_path, "doctor", "--json", "-s", str(base), TMPDIR=str(tmp_path / "tmp")))
    assert os.listdir(tmp_path) == ["tmp"], "no gateway's directory is made or touched"
    assert os.listdir(tmp_path / "tmp") == []
    with Running(tmp_path, "-s", str(base), "-w", "1") as gateway:
        assert gateway.document["status"]["isolation"] == document["level"]
        again = examined(moltbot(tmp_path, "doctor", "--json", "-s", str(base)))
        assert again["level"] == document["level"], "a running gateway is not in the way"
        assert moltbot(tmp_path, "send", "ada", "hello", "-s", str(base)).returncode == 0


def test_every_level_is_tried_whatever_the_settings_say(tmp_path: Path) -> None:
    document = examined(moltbot(tmp_path, "doctor", "--json", MOLTBOT_ISOLATION="directories"))
    assert (document["level"], document["isolation"]) == ("directories", "directories")
    assert works(document) == works(examined(moltbot(tmp_path, "doctor", "--json")))


def test_the_program_is_named_with_its_version_and_digest(tmp_path: Path) -> None:
    document = examined(moltbot(tmp_path, "doctor", "--json"))
    programs = [check for check in document["checks"] if check["name"] == "bwrap"]
    assert len(programs) == len(find_bwrap())
    for check, path in zip(programs, find_bwrap(), strict=True):
        digest = subprocess.run(
            ["sha256sum", path], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        assert check["detail"].startswith(f"{path}, bubblewrap ")
        assert check["detail"].endswith(f"sha256 {digest}")


def test_settings_that_ask_for_too_much_of_the_machine_are_told(tmp_path: Path) -> None:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        pytest.skip("open files are not bounded here")
    wanted = {
        "MOLTBOT_MAX_DISK": "100TB",
        "MOLTBOT_MAX_OPEN_FILES": str(files + 1),
        "MOLTBOT_NETWORK": "full",
    }
    document = examined(moltbot(tmp_path, "doctor", "--json", **wanted))
    checks = {check["name"]: check for check in document["checks"]}
    for name, says in (("disk space", "lower max_disk"), ("limits", "lower max_open_files")):
        assert not checks[name]["present"]
        assert says in checks[name]["remedy"]
    assert not checks["network"]["present"]
    assert "loopback is in reach" in checks["network"]["detail"]


def test_a_grant_that_opens_the_wall_is_refused(tmp_path: Path) -> None:
    line = failed(moltbot(tmp_path, "doctor", MOLTBOT_READ_ONLY_PATHS="/proc"), 2)
    assert "read_only_paths must not name /proc" in line


# --- where namespaces are refused ----------------------------------------------------------------------


@dataclass
class Hobbled:
    """This machine without what `bwrap` needs, made by `bwrap` itself, and who we are there."""

    home: Path
    prefix: list[str]
    who: dict[str, Any] = field(default_factory=dict)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *command(*arguments)],
            cwd=self.home,
            env=environment(self.home, **variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            **self.who,
        )


def bwrap_with(*words: str) -> list[str]:
    programs = find_bwrap()
    if not programs:
        pytest.skip("there is no bwrap")
    return [str(programs[-1]), *words, "--dev-bind", "/", "/", "--"]


@pytest.fixture
def ordinary() -> Iterator[Hobbled]:
    """An ordinary user who cannot make user namespaces."""
    home = Path(tempfile.mkdtemp(prefix="moltbot-test-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {"user": 65534, "group": 65534, "extra_groups": []}
        os.chown(home, 65534, 65534)
    found = Hobbled(home, bwrap_with("--unshare-user", "--disable-userns"), who)
    unreachable = "no ordinary user can read this interpreter, or make a user namespace here"
    try:
        try:
            reachable = found.run("--version").returncode == 0
        except PermissionError:  # not even the program that makes them
            reachable = False
        if not reachable:
            pytest.skip(unreachable)
        yield found
    finally:
        shutil.rmtree(home)


@pytest.fixture
def weak_root(tmp_path: Path) -> Hobbled:
    """Root without the capability that makes namespaces."""
    found = Hobbled(tmp_path, bwrap_with("--cap-drop", "CAP_SYS_ADMIN"))
    if os.geteuid() != 0 or found.run("--version").returncode != 0:
        pytest.skip("this needs root with all of its power")
    return found


def check_refusals(machine: Hobbled) -> None:
    """What must be met and cannot is a refusal by the doctor and by the gateway."""
    document = examined(machine.run("doctor", "--json", MOLTBOT_MIN_ISOLATION="bubblewrap"), 1)
    assert (document["level"], document["sufficient"]) == (None, False)
    text = machine.run("doctor", MOLTBOT_MIN_ISOLATION="bubblewrap")
    assert text.returncode == 1
    assert "A gateway cannot start here: nothing that the settings allow works" in text.stdout
    for variable in ("MOLTBOT_MIN_ISOLATION", "MOLTBOT_ISOLATION"):
        line = failed(machine.run("gateway", "--port", "0", "-s", "base", **{variable: "bubblewrap"}), 1)
        assert "bubblewrap does not work here (" in line
        assert "`moltbot doctor` says what would help" in line


def test_an_ordinary_user_without_namespaces_gets_less_and_is_told_how_to_get_them(ordinary: Hobbled) -> None:
    document = examined(ordinary.run("doctor", "--json"))
    assert "bubblewrap" not in works(document)
    assert document["level"] == ("landlock" if "landlock" in works(document) else "directories")
    for part in (document["levels"][0], next(c for c in document["checks"] if c["name"] == "namespaces")):
        assert "user.max_user_namespaces" in part["remedy"]
        assert part["remedy"].startswith("sudo sysctl -w ")
    assert "exceeded" in document["levels"][0]["whyNot"]
    assert document["levels"][0]["remedy"] in ordinary.run("doctor").stdout


def test_an_ordinary_user_without_namespaces_is_refused_what_needs_them(ordinary: Hobbled) -> None:
    check_refusals(ordinary)


def test_root_without_its_power_gets_less_and_is_refused_more(weak_root: Hobbled) -> None:
    document = examined(weak_root.run("doctor", "--json"))
    assert "bubblewrap" not in works(document)
    assert "SYS_ADMIN" in document["levels"][0]["remedy"]
    check_refusals(weak_root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's workers have uids of their own")
def test_a_handler_that_workers_cannot_read_is_found_before_the_start(tmp_path: Path) -> None:
    handler = tmp_path / "agent.py"
    handler.write_text("")
    handler.chmod(0o600)
    if "bubblewrap" not in works(examined(moltbot(tmp_path, "doctor", "--json"))):
        pytest.skip("bubblewrap does not work here")
    result = moltbot(tmp_path, "doctor", MOLTBOT_HANDLER=str(handler))
    assert result.returncode == 1
    assert f"A gateway cannot start here: {handler} cannot be read by the workers" in result.stdout
