"""Bookkeeping of latent pages and state slots: who refers to each. Plain integers; the bytes live on the ranks."""

from collections.abc import Sequence


class Allocator:
    """`size` equal places from number `first` on, each free or referred to by one or more owners.

    The lowest numbers go out first, so a small load stays compact. Owners are sequences and kept snapshots: `cached`
    marks the references of the latter, so that `reclaimable` says how many places eviction alone would free.
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
        """How many places nobody refers to."""
        return len(self._free)

    @property
    def reclaimable(self) -> int:
        """How many places only kept snapshots refer to."""
        return self._reclaimable

    def refs(self, place: int) -> int:
        """How many owners a place has."""
        return self._refs[place - self._first]

    def owned(self, places: Sequence[int]) -> int:
        """How many of a sequence's places it alone holds, kept snapshots aside: what it yields if it is preempted."""
        return sum(self._refs[p - self._first] - self._cached[p - self._first] == 1 for p in places)

    def take(self, count: int, cached: bool = False) -> list[int]:
        """`count` free places, each with one reference; ValueError if there are not as many (ask `free` first)."""
        if count > len(self._free):
            raise ValueError(f"{count} {self.name}s asked, {len(self._free)} of {self.size} free")
        out = [self._free.pop() for _ in range(count)]
        self._count(out, 1, cached)
        return out

    def share(self, places: Sequence[int], cached: bool = False) -> None:
        """One more reference to each; ValueError if one is free: nothing says what lies there."""
        for place in places:
            if not self.refs(place):
                raise ValueError(f"{self.name} {place} is free and can't be shared")
        self._count(places, 1, cached)

    def give(self, places: Sequence[int], cached: bool = False) -> None:
        """One reference less to each; what has none left is free. ValueError if one is free already."""
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
