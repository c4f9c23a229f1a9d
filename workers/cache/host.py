"""Which snapshots the host tier holds. Pure: the ranks' host memory is written and read by what leaves with the plans.

A snapshot's latents lie there once: each entry holds the state and the latents from its parent entry's end on.
"""

from collections.abc import Callable
from dataclasses import dataclass

from workers.cache.budget import Budget
from workers.cache.kept import Kept
from workers.cache.moves import Drop, Store


@dataclass(slots=True, eq=False)
class _Entry:
    key: int
    parent: Kept | None
    children: int
    bytes: int
    start: int


class HostTier:
    """After any mix of calls: an entry's parent is an entry, and `bytes` is within the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._entries: dict[Kept, _Entry] = {}
        self._next = 0
        self.bytes = 0
        self._stores: list[Store] = []
        self._drops: list[Drop] = []
        self.on_leaving: Callable[[Kept, float], None] = lambda kept, now: None  # told of what is about to go

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def store(self, kept: Kept, slot: int, page_size: int, now: float) -> list[Kept]:
        """Copy a snapshot from the device, if it fits; those that went for it.

        slot: where its state lies when the next plan begins. Ranks make the copy before that plan changes anything, so
        its places on the device may be given away at once.
        """
        if kept in self._entries:
            return []
        parent = kept.parent
        while parent is not None and parent not in self._entries:
            parent = parent.parent
        start = parent.position if parent else 0
        size = self._budget.bytes_of(kept.position - start)
        gone: list[Kept] = []
        while self.bytes + size > self._budget.host_bytes:
            victim = self._least(now, spared=parent)
            if victim is None:
                return gone
            self.on_leaving(victim, now)
            self.remove(victim)
            gone.append(victim)
        if parent is not None:
            self._entries[parent].children += 1
        self._entries[kept] = _Entry(self._next, parent, 0, size, start)
        self.bytes += size
        pages = kept.pages[start // page_size :]
        self._stores.append(Store(self._next, slot, pages, start, kept.position))
        self._next += 1
        return gone

    def remove(self, kept: Kept) -> None:
        """Forget an entry without children."""
        entry = self._entries.pop(kept)
        if entry.children:
            raise ValueError(f"{entry.children} snapshots on the host continue the one of {kept.position} tokens")
        if entry.parent is not None:
            self._entries[entry.parent].children -= 1
        self.bytes -= entry.bytes
        self._drops.append(Drop(entry.key))

    def line(self, kept: Kept) -> tuple[Kept, ...]:
        """The entries that together hold a snapshot, the one with its first tokens first."""
        out: list[Kept] = []
        at: Kept | None = kept
        while at is not None:
            out.append(at)
            at = self._entries[at].parent
        return tuple(reversed(out))

    def keys(self, kept: Kept, have: int) -> tuple[int, ...]:
        """Keys of the entries with its latents from `have` on and its state, in order of position."""
        return tuple(self._entries[k].key for k in self.line(kept) if k is kept or k.position > have)

    def continued_by(self, kept: Kept) -> list[Kept]:
        """The entry and all that need it, the longest first."""
        return sorted((k for k in self._entries if kept in self.line(k)), key=lambda k: -k.position)

    def take_changes(self) -> tuple[tuple[Store, ...], tuple[Drop, ...]]:
        """What the ranks' host memory is to do with the next plan."""
        stores, drops = tuple(self._stores), tuple(self._drops)
        self._stores.clear()
        self._drops.clear()
        return stores, drops

    def _least(self, now: float, spared: Kept | None) -> Kept | None:
        leaves = (k for k, e in self._entries.items() if not e.children and not k.pins and k is not spared)
        return min(leaves, key=lambda k: k.value(now) / self._entries[k].bytes, default=None)
