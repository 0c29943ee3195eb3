"""Which wall is taken, with real workers: the strongest that works, and none that does not hold."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.errors import BootError, IsolationUnavailable, SettingsError
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import TRASH
from moltbot.sandbox.isolation import choice
from moltbot.sandbox.isolation.choice import candidates, choose_wall, first_uid, probe
from moltbot.sandbox.isolation.plan import Ground, Level, Wall
from moltbot.sandbox.isolation.programs import find_bwrap
from moltbot.sandbox.isolation.view import view_of
from moltbot.sandbox.setting_kinds import MAX_WORKERS
from tests.fakes import descendants
from tests.sandbox.pools import make_pool, running_pool
from tests.support import check_sentence

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no walls elsewhere")

# Runs `bwrap` without some of what it was told, as long as the file `lies` is there.
LIAR = """#!{python} -I
import os, sys
at = sys.argv.index("--args") + 1
words = os.read(int(sys.argv[at]), 1 << 20).split(b"\\0")[:-1]
if os.path.exists({lies!r}):
    for dropped, operands in {dropped!r}:
        first = words.index(dropped)
        del words[first : first + 1 + operands]
told = os.memfd_create("words", 0)
os.write(told, b"".join(word + b"\\0" for word in words))
os.lseek(told, 0, os.SEEK_SET)
os.execv({bwrap!r}, ["bwrap", "--args", str(told), *sys.argv[at + 1 :]])
"""


@pytest.fixture(autouse=True)
def nothing_is_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_shown", set())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    return base


def use(monkeypatch: pytest.MonkeyPatch, *programs: str | Path) -> None:
    """From now on these programs are the `bwrap` of this machine."""
    monkeypatch.setattr(choice, "find_bwrap", lambda: [Path(program) for program in programs])


async def chosen(base: Path, **settings: Any) -> Wall:
    """The wall; whatever comes of it, no process and no directory may be left."""
    before = descendants()
    try:
        return (await choose_wall(PoolConfig.read({"sandbox_base_dir": base, **settings}), base)).wall
    finally:
        assert descendants() <= before
        assert not (base / TRASH).exists() or os.listdir(base / TRASH) == []


async def why_none(base: Path, **settings: Any) -> str:
    with pytest.raises(IsolationUnavailable) as caught:
        await chosen(base, **settings)
    check_sentence(str(caught.value))
    assert "`moltbot doctor` says what would help" in str(caught.value)
    return str(caught.value)


async def walls(base: Path) -> dict[Level, Wall]:
    """The walls that work here, strongest first."""
    config = PoolConfig.read({"sandbox_base_dir": base})
    found = candidates(config, Ground(base, (), first_uid(config.worker_uids, base)), view_of(config, base))
    return {wall.level: wall for wall in found if await probe(wall, config) is None}


async def needs_bubblewrap(base: Path) -> None:
    if Level.BUBBLEWRAP not in await walls(base):
        pytest.skip("bubblewrap does not work here")
    choice._shown.clear()


def liar(tmp_path: Path, *dropped: tuple[str, int]) -> tuple[Path, Path]:
    """A program that lies while a file is there; both."""
    program, lies = tmp_path / "bwrap", tmp_path / "lies"
    words = [(word.encode(), operands) for word, operands in dropped]
    real = str(find_bwrap()[0])
    program.write_text(LIAR.format(python=sys.executable, lies=str(lies), dropped=words, bwrap=real))
    program.chmod(0o755)
    return program, lies


# --- what is taken -------------------------------------------------------------------------------------


async def test_by_itself_the_strongest_that_works_is_taken(base: Path) -> None:
    working = list(await walls(base))
    assert working == sorted(working, key=list(Level).index)
    assert working[-1] is Level.DIRECTORIES
    choice._shown.clear()
    assert (await chosen(base)).level is working[0]


async def test_a_level_that_is_asked_for_is_taken_and_no_other(base: Path) -> None:
    for level in await walls(base):
        choice._shown.clear()
        assert (await chosen(base, isolation=str(level))).level is level


async def test_a_program_that_fails_is_no_wall_and_the_next_level_is_taken(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, "/bin/false")
    best, *_ = [level for level in await walls(base) if level is not Level.BUBBLEWRAP]
    assert (await chosen(base)).level is best
    taken = await choose_wall(PoolConfig.read({"sandbox_base_dir": base}), base)
    assert taken.passed_over[0] == "bubblewrap does not work here (a worker in it ended at once)"


async def test_a_second_program_is_tried(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await needs_bubblewrap(base)
    use(monkeypatch, "/bin/false", *find_bwrap())
    assert (await chosen(base)).level is Level.BUBBLEWRAP


async def test_the_lowest_level_is_reported_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "moltbot.isolation"):
        async with running_pool(tmp_path, isolation="directories") as running:
            assert running.pool.isolation is not None
            assert running.pool.isolation.warning is not None
    assert "NOT walled off" in caplog.text


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/bin/false", "a worker in it ended at once"),
        ("/no/such/bwrap", "it cannot be started (No such file or directory)"),
        ("/etc", "it cannot be started (Permission denied)"),
        (None, "there is no bwrap"),
    ],
)
async def test_below_the_lowest_allowed_level_nothing_is_taken(
    base: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, why: str
) -> None:
    use(monkeypatch, *([program] if program else []))
    for settings in ({"min_isolation": "bubblewrap"}, {"isolation": "bubblewrap"}):
        said = await why_none(base, **settings)
        assert f"bubblewrap does not work here ({why}" in said
        assert "landlock" not in said, "it was not allowed, so it was not tried"
    assert ("set isolation = auto" in said) is True


async def test_a_level_below_the_lowest_allowed_one_is_never_taken(base: Path) -> None:
    for wanted, least in (("landlock", "bubblewrap"), ("directories", "landlock")):
        with pytest.raises(SettingsError, match=f"isolation = {wanted} is below min_isolation = {least}"):
            await chosen(base, isolation=wanted, min_isolation=least)


async def test_what_the_program_printed_is_in_the_reason(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: first line\n\tno \33[31mpermissions' >&2; exit 1\n")
    program.chmod(0o755)
    use(monkeypatch, program)
    said = await why_none(base, isolation="bubblewrap")
    assert "ended at once: bwrap: first line no \\x1b[31mpermissions)" in said


async def test_a_program_that_hangs_is_ended(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bwrap"
    # It tells of a child as bwrap does, and then both do nothing for ever.
    program.write_text(
        f"#!{sys.executable} -I\nimport os, sys, time\nchild = os.fork()\n"
        "words = os.pread(int(sys.argv[2]), 1 << 20, 0).split(b'\\0')\n"
        "told = int(words[words.index(b'--info-fd') + 1])\n"
        "if child:\n    os.write(told, b'{\"child-pid\": %d}' % child)\ntime.sleep(1000)\n"
    )
    program.chmod(0o755)
    use(monkeypatch, program)
    monkeypatch.setattr(choice, "PROBE_SECONDS", 0.5)
    said = await why_none(base, isolation="bubblewrap")
    assert "was not ready within" in said


@pytest.mark.parametrize(
    ("dropped", "missing"),
    [
        ([("--seccomp", 1)], "no seccomp filter is in force"),
        ([("--unshare-net", 0)], "it shares the gateway's net namespace"),
        ([("--unshare-ipc", 0)], "it shares the gateway's ipc namespace"),
        ([("--unshare-pid", 0)], "the worker's process is not found from outside"),
        ([("--hostname", 1), ("--unshare-uts", 0)], "it shares the gateway's uts namespace"),
    ],
)
async def test_a_wall_with_a_gap_is_none(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, dropped: list[tuple[str, int]], missing: str
) -> None:
    await needs_bubblewrap(base)
    program, lies = liar(tmp_path, *dropped)
    use(monkeypatch, program)
    assert (await chosen(base, isolation="bubblewrap")).level is Level.BUBBLEWRAP
    choice._shown.clear()
    lies.touch()
    assert missing in await why_none(base, isolation="bubblewrap")


async def test_a_program_that_begins_to_lie_is_found_out_by_the_next_worker(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await needs_bubblewrap(base)
    program, lies = liar(tmp_path, ("--seccomp", 1), ("--unshare-net", 0))
    use(monkeypatch, program)
    async with running_pool(tmp_path, isolation="bubblewrap"):
        pass  # so that the wall needs no second probe
    lies.touch()
    before = descendants()
    with pytest.raises(BootError) as caught:
        await make_pool(tmp_path, isolation="bubblewrap").pool.start()
    assert "its wall does not hold: it shares the gateway's net namespace; no seccomp filter" in str(
        caught.value
    )
    assert descendants() <= before


# --- the handler, and who workers are ------------------------------------------------------------------


async def test_a_handler_that_workers_cannot_read_is_an_error_and_no_reason_for_less(
    tmp_path: Path, base: Path
) -> None:
    await needs_bubblewrap(base)
    handler = tmp_path / "private.py"
    handler.touch(mode=0o600)
    if os.geteuid() != 0:
        assert (await chosen(base, handler=str(handler))).level is Level.BUBBLEWRAP, (
            "its workers have our uid"
        )
        return
    with pytest.raises(
        SettingsError, match=rf"^{handler} cannot be read by the workers.* chmod -R o\+rX {handler}$"
    ):
        await chosen(base, handler=str(handler))
    assert (await chosen(base, handler=str(handler), isolation="landlock")).level is Level.LANDLOCK
    handler.chmod(0o604)
    assert (await chosen(base, handler=str(handler))).level is Level.BUBBLEWRAP


def test_every_base_directory_has_a_block_of_uids() -> None:
    uids = (2_000_000_000, 2_000_999_999)
    blocks = {first_uid(uids, Path(f"/data/{number}")) for number in range(200)}
    assert len(blocks) > 190, "gateways side by side rarely share one"
    for first in blocks:
        assert uids[0] <= first <= uids[1] - MAX_WORKERS + 1
        assert (first - uids[0]) % MAX_WORKERS == 0
    assert first_uid((1000, 1000 + MAX_WORKERS - 1), Path("/data")) == 1000
    assert first_uid(uids, Path("/data/base")) == 2_000_209_984, "what workers own must stay theirs"
