"""Attempts on files: the machine's, the gateway's, its base directory. Code is in `attempts_code.py`,
other workers' files are in `attempts_workers.py`.
"""

from __future__ import annotations

import os

from tests.escape.here import as_here, from_abi, opened
from tests.escape.table import Attempt, at, is_open, refused

HIDDEN = refused("ENOENT")
DENIED = refused("EACCES")
SEALED = refused("EROFS", "EACCES")
PLAIN = is_open("nothing but the uid guards files, and it is the gateway's")
BLIND = is_open("Landlock has no right for it: names, modes and times of files stay within reach")

HOST = (
    Attempt(
        "host-file-read",
        "a file of the gateway's user",
        "CVE-2024-21626 (runc: host files through a working directory)",
        "escaped(open(facts['secret']).read())",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "host-file-read-by-the-worker-itself",
        "the same, without a child process: the wall holds for the handler's thread too",
        "landlock(7): rules bind the thread that asks for them, and its children",
        "escaped(open(facts['secret']).read())",
        at(HIDDEN, DENIED, PLAIN),
        by="worker",
    ),
    Attempt(
        "host-file-write",
        "a file of the gateway's user, to append to it",
        "open(2)",
        "open(facts['secret'], 'a').close(); escaped('open for writing')",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "host-file-create",
        "a new file beside the gateway's own",
        "open(2)",
        "path = facts['outside'] + '/planted'; open(path, 'x').close(); os.unlink(path); escaped(path)",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "host-file-delete",
        "the end of a file of the gateway's user",
        "unlink(2)",
        "os.unlink(facts['spare']); escaped('it is gone')",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "host-file-truncate",
        "the end of a file's content, by its name alone",
        "landlock(7): truncation is a right of its own since ABI 3",
        "os.truncate(facts['longer'], 3); escaped('it is shorter')",
        at(HIDDEN, from_abi(3, "EACCES"), PLAIN),
    ),
    Attempt(
        "host-file-link",
        "a second name for a host file, in a folder that the worker may read",
        "link(2); protected_hardlinks in proc_sys_fs(5)",
        """
path = facts["state"] + "/second-name"
os.link(facts["secret"], path)
os.unlink(path)
escaped("linked")
""",
        at(HIDDEN, refused("EXDEV", "EACCES"), PLAIN),
    ),
    Attempt(
        "host-file-chmod",
        "the mode of a host file: who may read it, or that the gateway no longer can",
        "landlock(7), current limitations: chmod(2) is not restricted",
        "os.chmod(facts['secret'], os.stat(facts['secret']).st_mode & 0o7777); escaped('changed')",
        at(HIDDEN, BLIND, PLAIN),
    ),
    Attempt(
        "host-file-setuid",
        "a file of the gateway's user that runs as that user, whoever runs it",
        "chmod(2): the owner's uid is permission enough, and Landlock has no right for it",
        """
path, bits = facts["secret"], 0o4000
before = os.stat(path).st_mode & 0o7777
os.chmod(path, before | bits)
try:
    kept = os.stat(path).st_mode & bits
finally:
    os.chmod(path, before)
escaped("set") if kept else refused("not kept")
""",
        at(HIDDEN, refused("EPERM"), PLAIN),
    ),
    Attempt(
        "host-file-stat",
        "whether a host file exists, and its size and times",
        "landlock(7), current limitations: stat(2) is not restricted",
        "escaped(os.stat(facts['secret']))",
        at(HIDDEN, BLIND, PLAIN),
    ),
    Attempt(
        "host-folder-list",
        "the names in a folder of the gateway's user",
        "readdir(3)",
        "escaped(os.listdir(facts['outside']))",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "host-folder-watch",
        "who does what in a folder, as it happens",
        "inotify(7): reading the folder is permission enough",
        """
descriptor = checked(libc.inotify_init1(0))
checked(libc.inotify_add_watch(descriptor, facts["outside"].encode(), 0x100))
escaped("watching")
""",
        at(HIDDEN, is_open("Landlock does not restrict inotify: names of new files are told"), PLAIN),
    ),
    Attempt(
        "password-hashes",
        "/etc/shadow",
        "shadow(5)",
        "escaped(len(open('/etc/shadow').read()))",
        at(HIDDEN, DENIED, as_here(opened("/etc/shadow"), "the gateway can read it")),
    ),
    Attempt(
        "password-file-write",
        "a user of one's own in /etc/passwd",
        "passwd(5); CVE-2016-5195 (Dirty COW) wrote there",
        "os.close(os.open('/etc/passwd', os.O_WRONLY)); escaped('open for writing')",
        at(SEALED, DENIED, as_here(opened("/etc/passwd", os.O_WRONLY), "the gateway can write it")),
    ),
    Attempt(
        "file-in-the-root",
        "a file in / that fills memory or disk, and is there for all",
        "FACTS: the root of bubblewrap is a writable tmpfs unless it is remounted",
        "os.close(os.open('/', os.O_TMPFILE | os.O_WRONLY, 0o600)); escaped('made')",
        at(SEALED, DENIED, as_here(opened("/", os.O_TMPFILE | os.O_WRONLY), "the gateway can write there")),
    ),
    Attempt(
        "granted-file-write",
        "what the operator lets workers read, to change it",
        "CVE-2014-5207 (Linux: read-only binds made writable)",
        "open(facts['granted'] + '/text', 'r+').close(); escaped('open for writing')",
        at(SEALED, DENIED, PLAIN),
    ),
)

GATEWAY = (
    Attempt(
        "base-directory-list",
        "the names of all workers",
        "readdir(3)",
        "escaped(os.listdir(facts['base']))",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "base-directory-chmod",
        "the base directory, opened to every user of the machine",
        "landlock(7), current limitations: chmod(2) is not restricted",
        "os.chmod(facts['base'], 0o700); escaped('changed')",
        at(HIDDEN, BLIND, PLAIN),
    ),
    Attempt(
        "database",
        "who is pinned where",
        "open(2)",
        "escaped(open(facts['base'] + '/moltbot.db', 'r+b').read(16))",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "token",
        "the operator's credential, with which one speaks for everybody",
        "open(2)",
        "escaped(len(open(facts['base'] + '/token').read()))",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "gateway-announcement",
        "where the gateway listens, as the command line finds it; forged, it leads elsewhere",
        "open(2)",
        "escaped(open(facts['base'] + '/gateway.json', 'r+').read())",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "own-metadata-write",
        "the worker's own incarnation and isolation, as others read them",
        "open(2)",
        "open(facts['own_root'] + '/sandbox.json', 'r+').close(); escaped('open for writing')",
        at(HIDDEN, DENIED, PLAIN),
    ),
    Attempt(
        "own-log-write",
        "the worker's own log, to change what it has said",
        "open(2)",
        "open(facts['own_root'] + '/logs/worker.log', 'r+').close(); escaped('open for writing')",
        at(SEALED, DENIED, PLAIN),
    ),
)

ATTEMPTS = (*HOST, *GATEWAY)
