"""`moltbot sandbox explain` and `shell`: what is said of a worker's wall, and what is found inside of it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PATIENCE, descendants
from tests.support import Running, command, environment, failed, moltbot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no walls elsewhere")

BUBBLEWRAP = "bubblewrap"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base directory of a gateway that has run here and ended."""
    home = tmp_path_factory.mktemp("home")
    with Running(home, "-w", "2", "-s", "base") as running:
        (home / "level").write_text(running.document["status"]["isolation"])
    return home


@pytest.fixture
def level(home: Path) -> str:
    return (home / "level").read_text()


@pytest.fixture
def walled(level: str) -> None:
    if level != BUBBLEWRAP:
        pytest.skip("bubblewrap does not work here")


def inside(
    home: Path, *words: str, worker: str = "worker-0", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program inside; no process of it may be left."""
    before = descendants()
    result = moltbot(home, "sandbox", "shell", worker, "-s", "base", "--", *words, **variables)
    assert descendants() <= before
    return result


def said(home: Path, script: str, **variables: str) -> list[str]:
    """What a script printed inside, by lines."""
    result = inside(home, "sh", "-c", script, **variables)
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout.splitlines()


def explained(home: Path, **variables: str) -> dict[str, Any]:
    result = moltbot(home, "sandbox", "explain", "worker-0", "-s", "base", "--json", **variables)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    document: dict[str, Any] = json.loads(result.stdout)
    return document


# --- explain -------------------------------------------------------------------------------------------


def test_the_page_for_people_says_what_the_document_says(home: Path, level: str) -> None:
    document = explained(home)
    assert (document["workerId"], document["level"]) == ("worker-0", level)
    result = moltbot(home, "sandbox", "explain", "worker-0", "-s", "base")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"worker-0 runs at isolation level {level}, with uid {document['uid']}."
    assert f"Its environment: {', '.join(document['environment'])}" in lines
    for path in document["paths"]:
        [line] = [line for line in lines if line.split()[:1] == [path["inside"]]]
        assert path["access"] in line
        assert line.endswith(path["outside"] or "(inside only)")
    for protection in document["protections"]:
        assert any(protection["name"] in line and protection["detail"] in line for line in lines)


@pytest.mark.usefixtures("walled")
def test_every_path_that_is_explained_is_found_inside_as_it_is_explained(home: Path) -> None:
    paths = explained(home)["paths"]
    script = "for path in " + " ".join(path["inside"] for path in paths)
    script += '; do e=no; w=no; test -e "$path" && e=yes; test -w "$path" && w=yes; echo "$path $e $w"; done'
    found = {line.split()[0]: line.split()[1:] for line in said(home, script)}
    for path in paths:
        exists, writable = found[path["inside"]]
        assert exists == "yes", path
        assert (writable == "yes") is path["access"].startswith("write"), path


@pytest.mark.usefixtures("walled")
def test_what_is_found_inside_has_been_explained(home: Path) -> None:
    places = [Path(path["inside"]) for path in explained(home)["paths"]]
    places += [
        Path("/etc") / name
        for name in ("passwd", "group", "nsswitch.conf", "hosts")  # made for the worker
    ]
    folders = "/ /etc /sandbox /sandbox/lib/moltbot /home /root /var /run /sys"
    names = said(
        home, f'for f in {folders}; do test ! -r $f || for n in $(ls -A $f); do echo "$f/$n"; done; done'
    )
    assert {"/usr", "/proc", "/sandbox", "/tmp"} <= {name.replace("//", "/") for name in names}
    for found in (Path(name.replace("//", "/")) for name in names):
        assert any(place.is_relative_to(found) or found.is_relative_to(place) for place in places), found


@pytest.mark.usefixtures("walled")
def test_what_is_written_inside_lies_where_it_was_explained(home: Path) -> None:
    places = [path for path in explained(home)["paths"] if path["access"] == "write" and path["outside"]]
    assert len(places) == 4
    assert said(home, "; ".join(f"echo here > {path['inside']}/note" for path in places)) == []
    for path in places:
        assert (Path(path["outside"]) / "note").read_text() == "here\n"


@pytest.mark.usefixtures("walled")
def test_identity_and_environment_are_the_explained_ones(home: Path) -> None:
    document = explained(home)
    script = (
        "import json, os; print(json.dumps([os.getuid(), os.getgid(), os.getgroups(), sorted(os.environ)]))"
    )
    result = inside(home, sys.executable, "-I", "-c", script, SECRET="secret")
    assert result.returncode == 0, result.stderr
    uid, gid, groups, names = json.loads(result.stdout)
    assert uid == document["uid"]
    assert set(names) - set(document["environment"]) <= {"TERM", "COLORTERM", "PS1", "PWD", "LC_CTYPE"}
    if os.geteuid() == 0:
        assert (uid, gid, groups) != (0, 0, [0])
        assert uid == gid
        assert explained(home)["uid"] >= 2_000_000_000
    else:
        assert uid == os.geteuid()


def test_at_the_lowest_level_everything_is_explained_as_open(home: Path) -> None:
    with Running(home, "-w", "1", "-s", "open", MOLTBOT_ISOLATION="directories"):
        pass
    document = json.loads(moltbot(home, "sandbox", "explain", "worker-0", "-s", "open", "--json").stdout)
    assert document["level"] == "directories", "that of the worker, not what this command would get"
    assert {"inside": "/", "outside": "/", "access": "all that this system user may do"} in document["paths"]
    assert not next(one for one in document["protections"] if one["name"] == "files")["inForce"]


# --- shell ---------------------------------------------------------------------------------------------


def test_the_exit_status_passes(home: Path) -> None:
    assert inside(home, "true").returncode == 0
    assert inside(home, "sh", "-c", "exit 7").returncode == 7
    missing = inside(home, "/no/such/program")
    assert missing.returncode == 127
    assert "No such file or directory" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_what_is_typed_and_printed_passes(home: Path) -> None:
    words = ["sandbox", "shell", "worker-0", "-s", "base", "--", "sh", "-c", "cat; echo wrong >&2"]
    result = moltbot(home, *words, text="one\ntwo\n")
    assert (result.stdout, result.stderr) == ("one\ntwo\n", "wrong\n")


@pytest.mark.usefixtures("walled")
def test_it_stands_in_the_workers_own_directories_and_sees_no_others(home: Path) -> None:
    assert said(home, "pwd; echo $HOME $TMPDIR $MOLTBOT_WORKER_ID; ls -A /sandbox") == [
        "/sandbox/temp", "/sandbox/temp/.home /sandbox/temp worker-0",
        "cache", "lib", "logs", "sessions", "state", "temp",
    ]  # fmt: skip
    (home / "base" / "worker-1" / "state" / "secret").write_text("secret")
    base = home / "base"
    hidden = (base, base / "worker-1" / "state" / "secret", base / "token", home / "level", "/etc/shadow")
    result = inside(home, "cat", *map(str, hidden))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("No such file or directory") == len(hidden)
    assert inside(home, "sh", "-c", "echo x > /usr/x || echo x > /etc/x || echo x > /x").returncode != 0


@pytest.mark.usefixtures("walled")
def test_it_has_the_workers_limits_and_protections(home: Path) -> None:
    lines = said(home, "ulimit -n; ulimit -c; cat /proc/self/status", MOLTBOT_MAX_OPEN_FILES="100")
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert lines[:2] == ["1024", "0"], "those of the gateway that started it, not of this command"
    assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapEff"], 16)) == ("2", "1", 0)
    assert int(status["Pid"]) < 20, "a pid namespace of its own"


def test_beside_a_running_gateway_it_disturbs_nothing(home: Path) -> None:
    with Running(home, "-w", "1", "-s", "busy") as running:
        words = ["sandbox", "shell", "worker-0", "-s", "busy", "--", "sh", "-c", "exit 3"]
        assert moltbot(home, *words).returncode == 3
        status = json.loads(moltbot(home, "workers", "status", "-s", "busy", "--json").stdout)
        assert [worker["pid"] for worker in status["workers"]] == running.pids
        assert status["workers"][0]["restartCount"] == 0


# --- a terminal ----------------------------------------------------------------------------------------

OWN_TERMINAL = (
    "import fcntl, os, sys, termios;"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A person's terminal, with `moltbot` in it."""

    def __init__(self, home: Path, *words: str, **variables: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", OWN_TERMINAL, *command(*words)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=home,
            env=environment(home, **variables),
            start_new_session=True,
        )

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, text: str) -> str:
        """Read until `text` is shown; returns what was shown up to it."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} never came: {self.shown!r}"
            self.shown += os.read(self.master, 65536).decode(errors="replace")
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def ended(self) -> int:
        """The exit status. What is shown meanwhile is read, for a terminal waits for its reader."""
        end = os.pidfd_open(self.process.pid)
        while end not in (ready := select.select([self.master, end], [], [], PATIENCE)[0]):
            assert ready, f"it does not end: {self.shown!r}"
            self.shown += os.read(self.master, 65536).decode(errors="replace")
        os.close(end)
        return self.process.wait(PATIENCE)


@contextmanager
def terminal(home: Path, *words: str, **variables: str) -> Iterator[Terminal]:
    before = descendants()
    found = Terminal(home, *words, **variables)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait(PATIENCE)
        os.close(found.master)
        os.close(found.slave)
    assert descendants() <= before


# What is waited for is computed by the shell: the typed line, which is shown too, does not hold it.
@pytest.mark.usefixtures("walled")
def test_a_shell_in_a_terminal_has_job_control_and_gives_the_terminal_back(home: Path) -> None:
    with terminal(home, "sandbox", "shell", "worker-0", "-s", "base", TERM="xterm") as screen:
        assert "job control turned off" not in screen.until("$ ")
        screen.type("echo up-$((40 + 2)) $TERM $MOLTBOT_WORKER_ID\n")
        screen.until("up-42 xterm worker-0")
        screen.type("tty; sh -c 'echo begun-$((1 + 1)); exec sleep 1000'\n")
        assert "/dev/pts/0" in screen.until("begun-2"), "a terminal of its own, inside"
        screen.type("\x1a")  # Ctrl+Z
        screen.until("Stopped")
        screen.until("$ ")
        screen.type("kill -9 %1; wait %1; sh -c 'echo again-$((2 + 2)); exec sleep 1000'\n")
        screen.until("again-4")
        screen.type("\x03")  # Ctrl+C
        screen.until("$ ")
        screen.type("echo ended-$((60 + 6)) $?\n")
        screen.until("ended-66 130")
        screen.type("exit 9\n")
        assert screen.ended() == 9
        assert termios.tcgetattr(screen.slave) == screen.before


def test_a_program_in_a_terminal_passes_its_status(home: Path) -> None:
    words = ["sandbox", "shell", "worker-0", "-s", "base", "--", "sh", "-c", "echo out-$((5 + 5)); exit 4"]
    with terminal(home, *words) as screen:
        screen.until("out-10")
        assert screen.ended() == 4


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody", "worker-", "worker-01", "../base", "worker-0/..", "WORKER-0", ""])
@pytest.mark.parametrize("what", ["shell", "explain"])
def test_a_name_that_is_no_workers_is_told(home: Path, what: str, name: str) -> None:
    result = moltbot(home, "sandbox", what, "-s", "base", "--", name)
    assert "is not a worker's name: they are worker-0, worker-1 and so on" in failed(result, 1)


@pytest.mark.parametrize("what", ["shell", "explain"])
def test_a_worker_that_never_ran_is_told(home: Path, what: str) -> None:
    for name, base in (("worker-9", "base"), ("worker-0", "no-such-base"), ("worker-0", ".")):
        line = failed(moltbot(home, "sandbox", what, name, "-s", base), 1)
        assert (
            f"{name} is no worker's directory: start the gateway once, or name its base directory with -s"
            in line
        )
    assert not (home / "no-such-base").exists()


def test_an_error_can_be_a_document(home: Path) -> None:
    result = moltbot(home, "sandbox", "explain", "worker-9", "-s", "base", "--json")
    assert (result.returncode, result.stderr) == (1, "")
    assert "is no worker's directory" in json.loads(result.stdout)["error"]["detail"]


@pytest.mark.usefixtures("walled")
@pytest.mark.parametrize("other", ["landlock", "directories"])
def test_directories_of_another_levels_workers_are_told(home: Path, other: str) -> None:
    assert inside(home, "true", MOLTBOT_ISOLATION=other).returncode == 0, "the worker's own wall counts"
    record = home / "base" / "worker-1" / "sandbox.json"
    written = record.read_text()
    record.write_text(written.replace(f'"owner": {json.loads(written)["owner"]}', '"owner": 4711'))
    try:
        line = failed(inside(home, "true", worker="worker-1", MOLTBOT_ISOLATION=other), 1)
    finally:
        record.write_text(written)
    assert "worker-1 was last started at isolation level" in line
    assert "with uid 4711" in line
