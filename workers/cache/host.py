"""The index of the host tier. Pure: plans carry the orders to write and read the ranks' host memory.

Latents are stored once: each entry holds the latents from the end of its parent entry on, and a state. If other entries
continue it, its state may be removed alone; then the entry only holds latents for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.cache.budget import Budget
from workers.cache.kept import Kept
from workers.cache.moves import Drop, Store


@dataclass(slots=True, eq=False)
class _Entry:
    """Latents [start, stop), and the state after them unless `kept` is None. children: the entries that continue it."""

    key: int
    kept: Kept | None
    parent: "_Entry | None"
    start: int
    stop: int
    children: int = 0


class HostTier:
    """The entries in host memory.

    After any mix of calls each has a state or children, and `bytes` is within the budget.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._entries: dict[Kept, _Entry] = {}  # entries with a state
        self._next = 0
        self.bytes = 0
        self._stores: list[Store] = []
        self._drops: list[Drop] = []
        # Called with a snapshot that is about to be removed.
        self.on_leaving: Callable[[Kept, float], None] = lambda kept, now: None

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def store(self, kept: Kept, slot: int, page_size: int, now: float) -> list[Kept]:
        """Copy a snapshot from the device if it fits. Returns the snapshots removed for it.

        slot: holds the state when the next plan begins. Ranks make the copy before that plan changes anything, so its
        places on the device may be given away at once.
        """
        if kept in self._entries:
            return []
        above = kept.parent
        while above is not None and above not in self._entries:
            above = above.parent
        parent = self._entries[above] if above is not None else None
        start = parent.stop if parent else 0
        size = self._budget.bytes_of(kept.position - start)
        gone: list[Kept] = []
        while self.bytes + size > self._budget.host_bytes:
            victim = self._least(now, spared=above)
            if victim is None:
                return gone
            self.on_leaving(victim, now)
            self.remove(victim)
            gone.append(victim)
        if parent is not None:
            parent.children += 1
        self._entries[kept] = _Entry(self._next, kept, parent, start, kept.position)
        self.bytes += size
        pages = kept.pages[start // page_size :]
        self._stores.append(Store(self._next, slot, pages, start, kept.position))
        self._next += 1
        return gone

    def through(self, line: Sequence[tuple[int, Sequence[int], int]], page_size: int) -> tuple[int, ...]:
        """Hold snapshots, each a prefix of the next, for no longer than the next plan, whatever the budget; their keys.

        line: of each the slot of its state, as `store` takes it, its pages and its position.
        """
        keys: list[int] = []
        start = 0
        for slot, pages, position in line:
            self._stores.append(Store(self._next, slot, tuple(pages[start // page_size :]), start, position))
            self._drops.append(Drop(self._next))
            keys.append(self._next)
            start = position
            self._next += 1
        return tuple(keys)

    def remove(self, kept: Kept) -> None:
        """Remove a snapshot: its state, and the latents that no other snapshot needs."""
        entry = self._entries.pop(kept)
        entry.kept = None
        self.bytes -= self._budget.bytes_of(0)
        if entry.children:
            self._drops.append(Drop(entry.key, latents=False))
        at: _Entry | None = entry
        while at is not None and at.kept is None and not at.children:
            self.bytes -= self._budget.bytes_of(at.stop - at.start) - self._budget.bytes_of(0)
            self._drops.append(Drop(at.key))
            at = at.parent
            if at is not None:
                at.children -= 1

    def keys(self, kept: Kept, have: int) -> tuple[int, ...]:
        """The keys of the entries with its latents from `have` on, by position; the last one also has its state."""
        entries = self._line(kept)
        return tuple(e.key for e in reversed(entries) if e is entries[0] or e.stop > have)

    def continued_by(self, kept: Kept) -> list[Kept]:
        """The snapshot and all others that need its latents, longest first."""
        entry = self._entries[kept]
        return sorted((k for k in self._entries if entry in self._line(k)), key=lambda k: -k.position)

    def take_changes(self) -> tuple[tuple[Store, ...], tuple[Drop, ...]]:
        """Take the orders to the ranks' host memory for the next plan."""
        stores, drops = tuple(self._stores), tuple(self._drops)
        self._stores.clear()
        self._drops.clear()
        return stores, drops

    def _line(self, kept: Kept) -> list[_Entry]:
        """The entries that together hold a snapshot, its own first."""
        out: list[_Entry] = []
        at: _Entry | None = self._entries[kept]
        while at is not None:
            out.append(at)
            at = at.parent
        return out

    def _least(self, now: float, spared: Kept | None) -> Kept | None:
        among = ((k, e) for k, e in self._entries.items() if not k.pins and k is not spared)
        return min(among, key=lambda item: item[0].value(now) / self._freed(item[1]), default=(None, None))[0]

    def _freed(self, entry: _Entry) -> int:
        """The bytes that removing a snapshot's own entry frees."""
        return self._budget.bytes_of(0 if entry.children else entry.stop - entry.start)
