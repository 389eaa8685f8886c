"""Least-recently-used stores for what kernels keep between calls: bounded, thread-safe, fork-safe, and weak in their owners."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

Kept = TypeVar("Kept")
_all: "weakref.WeakSet[LruStore]" = weakref.WeakSet()


class _Entry(NamedTuple):
    thing: Any
    owners: list[weakref.ref]


class LruStore(Generic[Kept]):
    """At most `limit` things by key; a thing is dropped when one of its owners dies, or when `limit` others were used since.

    A thing must not refer to its owners, else they never die.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        # reentrant: the garbage collector may let an owner die while this thread holds it
        self.lock = threading.RLock()
        _all.add(self)

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, key: Hashable) -> Kept | None:
        """The thing kept under the key, which becomes the most recently used one."""
        with self.lock:
            found = self.entries.get(key)
            if found is None:
                return None
            try:
                self.entries.move_to_end(key)
            except KeyError:  # an owner has died just now
                return None
            return found.thing

    def put(self, key: Hashable, thing: Kept, owners: Sequence[object] = ()) -> None:
        """Keep a thing, and drop the least recently used ones beyond the limit."""
        own = weakref.ref(self)

        def dead(reference: weakref.ref) -> None:
            store = own()
            if store is not None:
                store._drop(key, reference)

        entry = _Entry(thing, [weakref.ref(owner, dead) for owner in owners])
        with self.lock:
            self.entries[key] = entry
            self.entries.move_to_end(key)
            self._shrink(self.limit)

    def make_room(self) -> None:
        """Drop the least recently used thing if the store is full, before another one is made."""
        with self.lock:
            self._shrink(self.limit - 1)

    def clear(self) -> None:
        """Drop everything."""
        with self.lock:
            self.entries.clear()

    def _shrink(self, limit: int) -> None:
        while len(self.entries) > limit:
            self.entries.popitem(last=False)

    def _drop(self, key: Hashable, reference: weakref.ref) -> None:
        with self.lock:
            found = self.entries.get(key)
            # the key may be another object's by now: an address is reused
            if found is not None and any(owner is reference for owner in found.owners):
                self.entries.pop(key, None)


def _renew_locks() -> None:
    for store in _all:
        store.lock = threading.RLock()


# a thread that held one when the process forked does not exist in the child
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
