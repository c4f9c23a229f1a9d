"""The index of snapshots in a tier below the device, which stores shared latents once and states separately. Pure.

Each entry holds the latents from the end of its parent entry on, and a state. If other entries continue it, its state
may be removed alone; then the entry only holds latents for them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from workers.cache.kept import Kept

N = TypeVar("N")  # by which the ranks know an entry


@dataclass(slots=True, eq=False)
class Entry(Generic[N]):
    """Latents [start, stop), and the state after them unless `kept` is None.

    latents, state: their bytes. children: the entries that continue it.
    """

    name: N
    kept: Kept | None
    parent: "Entry[N] | None"
    start: int
    stop: int
    latents: int
    state: int
    children: int = 0

    @property
    def freed(self) -> int:
        """The bytes that removing its snapshot frees at once."""
        return self.state + (0 if self.children else self.latents)


class Chains(Generic[N]):
    """The entries of a tier. After any mix of calls each has a state or children, and `bytes` is theirs together."""

    def __init__(self) -> None:
        self.bytes = 0
        self._entries: dict[Kept, Entry[N]] = {}  # those with a state

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._entries)

    def entry(self, kept: Kept) -> Entry[N]:
        """The entry with a snapshot's state; KeyError if there is none."""
        return self._entries[kept]

    def above(self, kept: Kept, fits: Callable[[Entry[N]], bool] = lambda entry: True) -> Entry[N] | None:
        """The entry of the longest snapshot here that a snapshot continues."""
        at = kept.parent
        while at is not None and not (at in self._entries and fits(self._entries[at])):
            at = at.parent
        return self._entries[at] if at is not None else None

    def add(self, entry: Entry[N]) -> None:
        """Add an entry to the end of its parent's line."""
        if entry.kept is not None:
            self._entries[entry.kept] = entry
            self.bytes += entry.state
        if entry.parent is not None:
            entry.parent.children += 1
        self.bytes += entry.latents

    def remove(self, kept: Kept) -> list[tuple[N, bool]]:
        """Remove a snapshot: its state, and the latents that no other snapshot needs.

        Returns the entries that change, each with whether its latents go too.
        """
        entry = self._entries.pop(kept)
        entry.kept = None
        self.bytes -= entry.state
        return [(entry.name, False)] if entry.children else self.prune(entry)

    def prune(self, entry: Entry[N]) -> list[tuple[N, bool]]:
        """Remove the latents of an entry, and of those before it, that nothing needs; returns as `remove`."""
        gone: list[tuple[N, bool]] = []
        at: Entry[N] | None = entry
        while at is not None and at.kept is None and not at.children:
            self.bytes -= at.latents
            gone.append((at.name, True))
            at = at.parent
            if at is not None:
                at.children -= 1
        return gone

    def line(self, kept: Kept) -> list[Entry[N]]:
        """The entries that together hold a snapshot, from its first token on."""
        out: list[Entry[N]] = []
        at: Entry[N] | None = self._entries[kept]
        while at is not None:
            out.append(at)
            at = at.parent
        return out[::-1]

    def names(self, kept: Kept, have: int) -> tuple[N, ...]:
        """The entries with its latents from `have` on, by position; the last one also has its state."""
        *before, last = self.line(kept)
        return (*(entry.name for entry in before if entry.stop > have), last.name)

    def continued_by(self, kept: Kept) -> list[Kept]:
        """The snapshot and all others that need its latents, longest first."""
        entry = self._entries[kept]
        return sorted((k for k in self._entries if entry in self.line(k)), key=lambda k: -k.position)

    def least(self, worth: Callable[[Entry[N], Kept], Any], spared: Entry[N] | None) -> Kept | None:
        """The snapshot of least worth that nothing reads now; None if there is none."""
        free = ((entry, k) for k, entry in self._entries.items() if not k.pins and entry is not spared)
        return min(free, key=lambda pair: worth(*pair), default=(None, None))[1]
