"""The index of the host tier. Pure: plans carry the orders to write and read the ranks' host memory."""

from collections.abc import Callable, Sequence

from workers.cache.budget import Budget
from workers.cache.chains import Chains, Entry
from workers.cache.kept import Kept
from workers.cache.moves import Drop, Store


class HostTier:
    """The snapshots in host memory, by the keys of `Store`. After any mix of calls `bytes` is within the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._chains = Chains[int]()
        self._next = 0
        self._stores: list[Store] = []
        self._drops: list[Drop] = []
        # Called with a snapshot that is about to be removed.
        self.on_leaving: Callable[[Kept, float], None] = lambda kept, now: None

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._chains

    def __len__(self) -> int:
        return len(self._chains)

    @property
    def bytes(self) -> int:
        """The bytes of all entries."""
        return self._chains.bytes

    def store(self, kept: Kept, slot: int, page_size: int, now: float, cut: int = 0) -> list[Kept]:
        """Copy a snapshot from the device if it fits. Returns the snapshots removed for it.

        slot: holds the state when the next plan begins. Ranks make the copy before that plan changes anything, so its
        places on the device may be given away at once. cut: the latents before it and those after it are stored apart,
        so that a file may take the latter alone.
        """
        if kept in self._chains:
            return []
        above = self._chains.above(kept)
        start = above.stop if above else 0
        size = self._budget.bytes_of(kept.position - start)
        gone: list[Kept] = []
        while self.bytes + size > self._budget.host_bytes:
            victim = self._chains.least(lambda entry, k: k.value(now) / entry.freed, above)
            if victim is None:
                return gone
            self.on_leaving(victim, now)
            self.remove(victim)
            gone.append(victim)
        if start < cut < kept.position:
            above, start = self._add(None, above, start, cut, kept, -1, page_size), cut
        self._add(kept, above, start, kept.position, kept, slot, page_size)
        return gone

    def _add(
        self, kept: Kept | None, above: Entry[int] | None, start: int, stop: int, of: Kept, slot: int, page_size: int
    ) -> Entry[int]:
        token, state = self._budget.token_bytes, self._budget.state_bytes
        entry = Entry(self._next, kept, above, start, stop, (stop - start) * token, state)
        self._chains.add(entry)
        self._stores.append(Store(self._next, slot, of.pages[start // page_size : -(-stop // page_size)], start, stop))
        self._next += 1
        return entry

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
        self._drops += [Drop(key, latents) for key, latents in self._chains.remove(kept)]

    def line(self, kept: Kept) -> list[Entry[int]]:
        """The entries that together hold a snapshot, from its first token on."""
        return self._chains.line(kept)

    def keys(self, kept: Kept, have: int) -> tuple[int, ...]:
        """The keys of the entries with its latents from `have` on, by position; the last one also has its state."""
        return self._chains.names(kept, have)

    def continued_by(self, kept: Kept) -> list[Kept]:
        """The snapshot and all others that need its latents, longest first."""
        return self._chains.continued_by(kept)

    def take_changes(self) -> tuple[tuple[Store, ...], tuple[Drop, ...]]:
        """Take the orders to the ranks' host memory for the next plan."""
        stores, drops = tuple(self._stores), tuple(self._drops)
        self._stores.clear()
        self._drops.clear()
        return stores, drops
