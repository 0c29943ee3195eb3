"""The walls around workers: what a worker can see, write, reach and use, at three levels.

    plan.py         the words: levels, protections, the `Wall` interface; all of it plain data
    view.py         which paths of this machine a worker sees, and which grants are refused
    bubblewrap.py   the strongest wall: namespaces, an empty root, an own uid or a user namespace
    root.py         the root of the filesystem behind it, built from an empty one
    landlock.py     what the kernel can forbid to a process that asks for it: files, TCP, signals
    directories.py  no wall: layout, limits and a clean environment only
    seccomp.py      system calls a worker may not make; the table is in seccomp_rules.py
    limits.py       the bounds that stand at every level, as protections
    isolation.py    all that holds for a pool's workers
    programs.py     which `bwrap` there is
    choice.py       which level works on this machine, shown by a real worker inside it
    witness.py      what holds for a running worker, read from outside of it
    checkup.py      what this machine offers; remedies.py: what to do about what it does not
    explain.py      one worker's wall, in words

What has to be applied from inside is in `worker/confine.py`.
"""
