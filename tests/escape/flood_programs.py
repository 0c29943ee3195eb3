"""The programs of `attempts_floods.py`. Each is bounded by itself, in time by `over()`."""

from __future__ import annotations

FORKS = """
children = []
try:
    while len(children) < 100:
        pid = os.fork()
        if pid == 0:
            linger()
            os._exit(0)
        children.append(pid)
except OSError as error:
    refused(error)
linger()
"""

THREADS = """
started = []
try:
    while len(started) < 100:
        thread = threading.Thread(target=linger, daemon=True)
        thread.start()
        started.append(thread)
except RuntimeError:
    say("EAGAIN")
linger()
"""

ONE_GROWS = """
kept = []
while len(kept) < 20:
    kept.append(bytearray(os.urandom(1 << 20)) * 8)
linger()
"""

MANY_GROW = """
for _ in range(6):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1 << 20)) * 20
        linger()
        os._exit(0)
linger()
"""

FILL = """
name = os.path.join({place!r}, marker)
limit = 1 << 20 if given["careful"] else 128 << 20
written = 0
try:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        while written < limit:
            written += os.write(descriptor, bytes(1 << 20))
        say("open")
    finally:
        os.close(descriptor)
        os.unlink(name)
except OSError as error:
    refused(error)
"""

TMP_NAMES = """
folder = "/tmp/" + marker
count = 10 if given["careful"] else 100_000
try:
    os.mkdir(folder)
    for number in range(count):
        os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY))
    time.sleep(0 if given["careful"] else 10)
    for number in range(count):
        os.unlink(f"{folder}/{number}")
    os.rmdir(folder)
    say("open")
except OSError as error:
    refused(error)
"""

MEMFD = """
try:
    os.memfd_create("flood")
    say("open")
except OSError as error:
    refused(error)
"""

DESCRIPTORS = """
opened = []
try:
    while len(opened) < 4096:
        opened.append(os.dup(0))
    say("open")
except OSError as error:
    refused(error)
linger()
"""

ONE_FILE = """
written = 0
descriptor = os.open(os.path.join(temp, "large"), os.O_WRONLY | os.O_CREAT, 0o600)
try:
    while written < 64 << 20:
        written += os.write(descriptor, bytes(1 << 20))
    say("open")
except OSError as error:
    os.unlink(os.path.join(temp, "large"))
    refused(error)
"""

SPARSE_FILE = """
try:
    os.truncate(os.open(os.path.join(temp, "sparse"), os.O_WRONLY | os.O_CREAT, 0o600), 1 << 40)
    say("open")
except OSError as error:
    refused(error)
"""

SPIN = """
for _ in range(4):
    if os.fork() == 0:
        while not over():
            pass
        os._exit(0)
say("spins")
linger()
"""

PRINTS = """
block = (b"x" * 1023 + b"\\n") * 1024
for descriptor in (1, 2):
    for _ in range(24):
        os.write(descriptor, block)
os.write(1, b"y" * (8 << 20))
say("printed")
"""

CORE = """
import resource
try:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    says = "open"
except (ValueError, OSError):
    says = "refused"
    if os.fork() == 0:
        os.chdir(temp)
        os.abort()
    _, status = os.wait()
    assert not os.WCOREDUMP(status)
say(says)
"""

PRIORITY = """
try:
    os.nice(-20)
    say("open")
except OSError as error:
    refused(error)
"""
