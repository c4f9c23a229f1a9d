"""Bookkeeping of latent pages and state slots: which are free. Plain integers; the bytes live on the ranks."""


class Allocator:
    """`size` equal places, each free or taken. Lowest numbers go out first, so a small load stays compact."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._taken = bytearray(size)

    @property
    def free(self) -> int:
        """How many places are free."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` places; ValueError if there are not as many (ask `free` first)."""
        if count > len(self._free):
            raise ValueError(f"{count} {self.name}s asked, {len(self._free)} of {self.size} free")
        out = [self._free.pop() for _ in range(count)]
        for place in out:
            self._taken[place] = 1
        return out

    def give(self, places: list[int]) -> None:
        """Free places again; ValueError if one is free already: two owners would write over each other."""
        for place in places:
            if not self._taken[place]:
                raise ValueError(f"{self.name} {place} freed twice")
            self._taken[place] = 0
        self._free.extend(reversed(places))
