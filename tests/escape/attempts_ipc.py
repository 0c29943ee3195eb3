"""Attempts on memory, semaphores and queues that processes share."""

from __future__ import annotations

from tests.escape.table import Attempt, at, is_open, refused

UNSEEN = refused("ENOENT")
DENIED = refused("EACCES")
FILTERED = refused("EPERM")
PLAIN = is_open("the gateway's processes have the same uid, and nothing else guards what they share")

ATTEMPTS = (
    Attempt(
        "shared-memory-by-key",
        "a System V segment of the gateway's user, by its key",
        "shmget(2)",
        "escaped(call('shmget', facts['ipc_key'], 0, 0))",
        at(FILTERED, FILTERED, PLAIN),
    ),
    Attempt(
        "shared-memory-by-number",
        "the same segment by its number, which is small and easily guessed: nobody needs shmget(2) to attach",
        "shmop(2); CVE-2015-7613 (Linux: System V objects before their owner is set)",
        """
libc.shmat.restype = ctypes.c_void_p
address = libc.shmat(facts["segment"], None, 0o10000)
if address == ctypes.c_void_p(-1).value:
    checked(-1)
escaped(ctypes.string_at(address, len(facts["marker"])))
""",
        at(
            refused("EINVAL"),
            FILTERED,
            PLAIN,
        ),
    ),
    Attempt(
        "semaphores-by-key",
        "System V semaphores of the gateway's user, by their key",
        "semget(2)",
        "escaped(call('semget', facts['ipc_key'], 0, 0))",
        at(UNSEEN, FILTERED, PLAIN),
    ),
    Attempt(
        "semaphores-by-number",
        "the same by their number",
        "semctl(2)",
        "escaped(call('semctl', facts['semaphores'], 0, 12, 0))",
        at(
            refused("EINVAL"),
            FILTERED,
            PLAIN,
        ),
    ),
    Attempt(
        "queue-by-key",
        "a System V queue of the gateway's user, by its key",
        "msgget(2)",
        "escaped(call('msgget', facts['ipc_key'], 0))",
        at(UNSEEN, FILTERED, PLAIN),
    ),
    Attempt(
        "queue-by-number",
        "the same by its number: a message sent to whoever reads there",
        "msgop(2)",
        """
message = ctypes.create_string_buffer((1).to_bytes(8, "little") + b"x", 16)
call("msgsnd", facts["queue"], message, 1, 0o4000)
escaped("sent")
""",
        at(
            refused("EINVAL"),
            FILTERED,
            PLAIN,
        ),
    ),
    Attempt(
        "posix-shared-memory",
        "what others share under /dev/shm",
        "shm_open(3)",
        "escaped(open(facts['shared'], 'r+').read())",
        at(UNSEEN, DENIED, PLAIN),
    ),
    Attempt(
        "posix-shared-memory-names",
        "the names of what others share",
        "shm_overview(7)",
        """
names = os.listdir("/dev/shm")
escaped(names) if os.path.basename(facts["shared"]) in names else refused("only our own")
""",
        at(refused("only our own"), DENIED, PLAIN),
    ),
    Attempt(
        "posix-semaphore",
        "a named semaphore of the gateway's user",
        "sem_open(3)",
        """
library = ctypes.CDLL("libpthread.so.0", use_errno=True)
library.sem_open.restype = ctypes.c_void_p
if not library.sem_open(b"/" + facts["semaphore_name"].encode(), 0):
    checked(-1)
escaped("open")
""",
        at(UNSEEN, DENIED, PLAIN),
    ),
    Attempt(
        "posix-queue",
        "a POSIX queue of the gateway's user",
        "mq_open(3); CVE-2017-11176 (Linux: mq_notify)",
        "escaped(call('mq_open', facts['queue_name'].encode(), os.O_RDWR, 0, 0))",
        at(UNSEEN, FILTERED, PLAIN),
    ),
    Attempt(
        "posix-queue-delete",
        "the end of a POSIX queue of the gateway's user, by its name alone",
        "mq_unlink(3)",
        "call('mq_unlink', facts['spare_queue'].encode()); escaped('it is gone')",
        at(UNSEEN, FILTERED, PLAIN),
    ),
)
