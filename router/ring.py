"""The consistent-hash ring: which worker a user would live on if nothing were full.

It only names an order of workers for a user, the same in every process and on every machine. How full a worker may
get is `placement.py`; where a user really lives is `directory.py`, and once pinned the ring is never asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from uhashring import HashRing

from moltbot.core.errors import Unavailable

VNODES = 512  # points per worker: the bare ring is then within 1.04-1.13 of even, with 160 within 1.05-1.36


class Ring:
    """Workers on a ring; the same for any order of adding. Not thread-safe while it is changed."""

    def __init__(self, worker_ids: Iterable[str]) -> None:
        # The default hash, md5 of the UTF-8 bytes: with "ketama" a change of weight moves keys between unrelated nodes.
        self._ring = HashRing(list(dict.fromkeys(worker_ids)), vnodes=VNODES)

    def add(self, worker_id: str) -> None:
        """Put a worker on the ring; only users that it takes over move, and only from the ring's point of view."""
        self._ring.add_node(worker_id)

    def remove(self, worker_id: str) -> None:
        """Take a worker off the ring; one that is not there is ignored."""
        if worker_id in self._ring.get_nodes():
            self._ring.remove_node(worker_id)

    def __contains__(self, worker_id: object) -> bool:
        return worker_id in self._ring.get_nodes()

    def __len__(self) -> int:
        return len(self._ring.get_nodes())

    def first(self, user_id: str) -> str:
        """The first worker at or after the user's point; raises Unavailable if the ring is empty."""
        worker_id: str | None = self._ring.get_node(user_id)
        if worker_id is None:  # what the library answers for an empty ring
            raise Unavailable("no worker is in the pool: start or scale it to at least one")
        return worker_id

    def walk(self, user_id: str) -> Iterator[str]:
        """Every worker once, in ring order from the user's point; raises Unavailable if the ring is empty."""
        first = self.first(user_id)
        yield first  # by itself: the library's iterator copies the ring before its first step, and few callers go on
        for worker_id in self._ring.iterate_nodes(user_id):
            if worker_id != first:
                yield worker_id
