"""Bookkeeping of latent pages and state slots by their references. It handles numbers; the ranks hold the bytes."""

from collections.abc import Sequence


class Allocator:
    """`size` equal places (pages or slots) with numbers from `first` on, each free or referred to by owners.

    The lowest free numbers are taken first, so that a small load stays compact. Owners are sequences and kept
    snapshots: `cached` marks the references of the latter, so that `reclaimable` says how many places eviction alone
    would free.
    """

    def __init__(self, name: str, size: int, first: int = 0) -> None:
        self.name = name
        self.size = size
        self._first = first
        self._free = list(range(first + size - 1, first - 1, -1))
        self._refs = [0] * size
        self._cached = [0] * size
        self._reclaimable = 0

    @property
    def free(self) -> int:
        """The number of free places."""
        return len(self._free)

    @property
    def reclaimable(self) -> int:
        """The number of places that only kept snapshots refer to."""
        return self._reclaimable

    def refs(self, place: int) -> int:
        """The number of a place's owners."""
        return self._refs[place - self._first]

    def owned(self, places: Sequence[int]) -> int:
        """The number of places that no other sequence shares, which are freed if this sequence is preempted."""
        return sum(self._refs[p - self._first] - self._cached[p - self._first] == 1 for p in places)

    def take(self, count: int, cached: bool = False) -> list[int]:
        """Take `count` free places, each with one reference; ValueError if there are fewer (ask `free` first)."""
        if count > len(self._free):
            raise ValueError(f"{count} {self.name}s asked, {len(self._free)} of {self.size} free")
        out = [self._free.pop() for _ in range(count)]
        self._count(out, 1, cached)
        return out

    def share(self, places: Sequence[int], cached: bool = False) -> None:
        """Add a reference to each place; ValueError if one is free, because its content is undefined."""
        for place in places:
            if not self.refs(place):
                raise ValueError(f"{self.name} {place} is free and can't be shared")
        self._count(places, 1, cached)

    def give(self, places: Sequence[int], cached: bool = False) -> None:
        """Drop a reference to each place; a place without references is free. ValueError if one is free already."""
        for place in places:
            if self.refs(place) - (0 if cached else self._cached[place - self._first]) < 1:
                raise ValueError(f"{self.name} {place} freed twice")
            self._count((place,), -1, cached)
        self._free.extend(place for place in reversed(places) if not self.refs(place))

    def _count(self, places: Sequence[int], change: int, cached: bool) -> None:
        for place in places:
            at = place - self._first
            self._reclaimable -= self._only_cached(at)
            self._refs[at] += change
            if cached:
                self._cached[at] += change
            self._reclaimable += self._only_cached(at)

    def _only_cached(self, at: int) -> bool:
        return self._refs[at] == self._cached[at] > 0
