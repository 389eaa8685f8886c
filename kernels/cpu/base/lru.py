"""What is kept of modules between calls: a few things, those used last."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Kept = TypeVar("Kept")
_all: "weakref.WeakSet[LruStore]" = weakref.WeakSet()


class LruStore(Generic[Kept]):
    """At most `most` things by key, for any number of threads."""

    def __init__(self, most: int):
        self.most = most
        self.things: OrderedDict[Hashable, Kept] = OrderedDict()
        self.lock = threading.Lock()
        _all.add(self)

    def __len__(self) -> int:
        return len(self.things)

    def get(self, key: Hashable) -> Kept | None:
        """What is kept under the key, which is used now."""
        with self.lock:
            found = self.things.get(key)
            if found is not None:
                self.things.move_to_end(key)
            return found

    def put(self, key: Hashable, thing: Kept) -> None:
        """LruStore a thing, and drop what was used longest ago."""
        with self.lock:
            self.things[key] = thing
            self.things.move_to_end(key)
            while len(self.things) > self.most:
                self.things.popitem(last=False)

    def clear(self) -> None:
        """Drop everything."""
        with self.lock:
            self.things.clear()


def _renew_locks() -> None:
    for keep in _all:
        keep.lock = threading.Lock()


# a thread that held one at the fork is not there to give it back
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
