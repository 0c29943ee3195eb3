"""Attempts on what belongs to another worker: its users' files, by every road that leads there."""

from __future__ import annotations

from tests.escape.table import Attempt, at, is_open, refused

HIDDEN = refused("ENOENT")
DENIED = refused("EACCES")
ACROSS = refused("EXDEV", "EACCES")
PLAIN = is_open("all workers have the gateway's uid, and nothing else guards their files")

ATTEMPTS = (
    Attempt(
        "other-state-read",
        "what another worker keeps of a user",
        "open(2)",
        "escaped(open(facts['other_state']).read())",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "other-state-read-by-the-worker-itself",
        "the same from the handler's thread",
        "open(2)",
        "escaped(open(facts['other_state']).read())",
        at(HIDDEN, DENIED, PLAIN),
        by="worker",
    ),
    Attempt(
        "other-state-write",
        "the same, to change it",
        "open(2)",
        "open(facts['other_state'], 'r+').close(); escaped('open for writing')",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "other-state-delete",
        "its end; moved aside and back again where that works",
        "rename(2)",
        """
os.rename(facts["other_state"], facts["other_state"] + ".gone")
os.rename(facts["other_state"] + ".gone", facts["other_state"])
escaped("moved")
""",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "other-folder-list",
        "which users another worker has",
        "readdir(3)",
        "escaped(os.listdir(facts['other'] + '/state'))",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "other-log-read",
        "what another worker printed",
        "open(2)",
        "escaped(open(facts['other'] + '/logs/worker.log').read())",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "other-temp-list",
        "what another worker is at work on",
        "readdir(3)",
        "escaped(os.listdir(facts['other'] + '/temp'))",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "other-state-chmod",
        "another worker's own folder, closed to it",
        "landlock(7), current limitations: chmod(2) is not restricted",
        "os.chmod(facts['other'] + '/state', 0o700); escaped('changed')",
        at(
            HIDDEN,
            is_open("Landlock has no right for it, and all workers have one uid: one can lock another out"),
            PLAIN,
        ),
    ),
    Attempt(
        "other-state-hard-link",
        "a second name for another worker's file, in our own folder",
        "link(2)",
        """
path = facts["state"] + "/second-name"
os.link(facts["other_state"], path)
data = open(path).read()
os.unlink(path)
escaped(data)
""",
        at(HIDDEN, ACROSS, PLAIN),
    ),
    Attempt(
        "other-state-rename-to-us",
        "another worker's file, moved into our own folder",
        "landlock(7): moves between folders are a right of their own since ABI 2",
        """
path = facts["state"] + "/taken"
os.rename(facts["other_state"], path)
data = open(path).read()
os.rename(path, facts["other_state"])
escaped(data)
""",
        at(HIDDEN, ACROSS, PLAIN),
    ),
    Attempt(
        "own-file-rename-to-other",
        "a file of ours, planted among another worker's",
        "rename(2)",
        """
path, planted = facts["state"] + "/mine", facts["other_state"] + ".planted"
open(path, "w").close()
try:
    os.rename(path, planted)
    os.unlink(planted)
finally:
    if os.path.exists(path):
        os.unlink(path)
escaped("planted")
""",
        at(HIDDEN, ACROSS, PLAIN),
    ),
    Attempt(
        "link-to-other",
        "another worker's file through a symbolic link in our own folder",
        "CVE-2018-15664 (docker cp: links exchanged by whoever is inside)",
        """
path = facts["state"] + "/link"
os.symlink(facts["other_state"], path)
try:
    escaped(open(path).read())
finally:
    os.unlink(path)
""",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "dots-to-other",
        "another worker's folder by .. from our own",
        "path_resolution(7)",
        """
up = facts["state"] + "/../../../worker-1/state"
escaped(os.listdir(up))
""",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "dots-from-a-descriptor",
        "the same from an open folder: a descriptor knows its real parents",
        "openat(2); CVE-2024-21626 (runc)",
        """
own = os.open(facts["state"], os.O_DIRECTORY)
escaped(os.listdir(os.open("../../../worker-1/state", os.O_DIRECTORY, dir_fd=own)))
""",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "folder-swapped-for-a-link",
        "our state folder replaced by a link to the other's: at the next start, that would be bound as ours",
        "CVE-2024-42472 (Flatpak: a persistent folder replaced by a link); CVE-2021-30465 (runc)",
        """
state = facts["own_root"] + "/state"
os.rename(state, state + ".aside")
try:
    os.symlink(facts["other"] + "/state", state)
    found = os.listdir(state)
    os.unlink(state)
finally:
    os.rename(state + ".aside", state)
escaped(found)
""",
        at(refused("EROFS", "EBUSY", "EACCES"), DENIED, PLAIN),
    ),
)
