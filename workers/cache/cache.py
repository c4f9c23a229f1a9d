"""The prefix cache of a worker: decides which snapshots are kept in which tier, and which are evicted. Pure.

It owns references to latent pages, and to the state slots beside those of running sequences. The ranks hold the bytes;
the next step plan carries the decisions to them.
"""

from collections.abc import Callable, Iterable, Sequence

from wire.digest import PageDigests, digests_at, packed
from wire.protocol import Tier
from wire.tokens import TokenIds
from workers.cache.allocator import Allocator
from workers.cache.budget import Budget
from workers.cache.chains import Entry
from workers.cache.disk import DiskTier, Place
from workers.cache.disk_folder import Found, Left
from workers.cache.host import HostTier
from workers.cache.index import Index, Tokens
from workers.cache.kept import Kept
from workers.cache.moves import Drop, Store, Write
from workers.cache.pins import Pins
from workers.cache.totals import CacheTotals


class PrefixCache:
    """All kept snapshots; with a budget of no states there are none.

    After any mix of calls: a page or slot has one cached reference for each snapshot that lies in it, and a snapshot in
    the index lies on the device, on the host, or on both. on_change: called with each snapshot whose `tier` changed.
    """

    def __init__(self, pages: Allocator, page_size: int, first_slot: int, budget: Budget) -> None:
        self.budget = budget
        self.totals = CacheTotals()
        self.index = Index(page_size)
        self.slots = Allocator("kept state", budget.device_states, first_slot)
        self.host = HostTier(budget)
        self.host.on_leaving = self._leaves_host
        self.disk = DiskTier(budget)
        self.pins = Pins()
        self._parking: list[Kept] = []
        self._elsewhere: dict[Kept, int] = {}  # slots of states that the next plan copies to their kept slots
        self.on_change: Callable[[Kept], None] = lambda kept: None
        self.pages = pages
        self.page_size = page_size

    @property
    def held(self) -> dict[Tier, int]:
        """Kept snapshots by tier; one may lie on several."""
        return {"device": self.slots.size - self.slots.free, "host": len(self.host), "disk": len(self.disk)}

    # Keeping

    def reserve(self, tokens: Tokens, position: int, now: float) -> int | None:
        """Reserve a state slot for the snapshot of the first `position` tokens, for `keep` or `release`.

        None if the snapshot is kept already, or if running copies read all slots.
        """
        if not self.slots.size:
            return None
        there = self.index.at(tokens, position)
        if there is not None and there.slot >= 0:
            there.used = now
            return None
        if not self.slots.free:
            victim = self._least(now, (k for k in self.index if k.slot >= 0 and not k.pins))
            if victim is None:
                return None
            self._leave_device(victim)
        return self.slots.take(1, cached=True)[0]

    def release(self, slot: int) -> None:
        """Give a reserved slot back unused."""
        self.slots.give([slot], cached=True)

    def keep(
        self, tokens: Tokens, position: int, pages: Sequence[int], slot: int, now: float, state_in: int | None
    ) -> Kept:
        """Keep the snapshot of the first `position` tokens.

        pages: the sequence's pages, which it keeps sharing. slot: a reserved slot. state_in: the slot that holds the
        state when the next plan begins, from which it is copied to the host; None to keep it on the device alone.
        """
        kept = self.index.at(tokens, position)
        if kept is not None and kept.slot >= 0:  # another sequence kept the same snapshot within the step
            self.release(slot)
            kept.used = now
            return kept
        new = kept is None
        if kept is None:
            kept = Kept(position, tokens.digests.floor(position), tokens.tail(position), None, now)
            if self.disk.place is not None:
                kept.ids, kept.scope = packed(tokens.ids[:position]), tokens.digests.scope
        kept.pages, kept.slot, kept.used = tuple(pages[: -(-position // self.page_size)]), slot, now
        self.pages.share(kept.pages, cached=True)
        if new:
            self.index.insert(kept, tokens)
        else:
            self.index.place(kept)
        self.on_change(kept)
        if state_in is not None:
            self._elsewhere[kept] = state_in
            if self.budget.host_bytes:
                self._store(kept, now)
        return kept

    def tier(self, kept: Kept) -> Tier | None:
        """The fastest tier that holds a snapshot; None if it was evicted from all."""
        if kept.slot >= 0:
            return "device"
        return "host" if kept in self.host else "disk" if kept in self.disk else None

    # The disk

    def open_disk(self, place: Place, left: Left, now: float) -> None:
        """Write files to `place` from now on, and take over those that an earlier worker left."""
        self.disk = DiskTier(self.budget, place)
        for foreign in left.foreign:
            position = foreign.position // self.page_size * self.page_size
            if position:
                (floor,) = digests_at(foreign.token_ids, [position], foreign.scope)
                self.index.note_foreign(floor)
        self.take_files(left.found, now)

    def take_files(self, files: Sequence[Found], now: float) -> None:
        """Take over files of an earlier worker, as many as fit. Each comes after the one that it continues."""
        entries: dict[str, Entry[str]] = {}
        for found in files:
            kept = self._known(found.token_ids, found.position, found.scope, now - found.age_s) if found.state else None
            above = entries[found.before] if found.before else None
            sizes = found.latents, found.state if kept is not None else 0
            entry = entries[found.name] = Entry(found.file, kept, above, found.start, found.position, *sizes)
            self.disk.enter(entry)
            if kept is not None:
                self.on_change(kept)
        for entry in [entry for entry in entries.values() if entry.kept is None and not entry.children]:
            self.disk.prune(entry)
        for gone in self.disk.make_room(0, now):
            self._left(gone, "disk")

    def enter_file(self, token_ids: TokenIds, position: int, scope: str, file: str, now: float) -> Kept | None:
        """A file that does not stay holds the snapshot of the first `position` ids; None if that is kept already."""
        kept = self._known(token_ids, position, scope, now)
        if kept is not None:
            self.disk.enter(Entry(file, kept, None, 0, position, 0, 0))
            self.on_change(kept)
        return kept

    def _known(self, token_ids: TokenIds, position: int, scope: str, used: float) -> Kept | None:
        ids = token_ids.array()
        digests = PageDigests(self.page_size, scope)
        digests.extend(ids)
        tokens = Tokens(ids, digests)
        if self.index.at(tokens, position) is not None:
            return None
        kept = Kept(position, digests.floor(position), tokens.tail(position), None, used)
        kept.ids, kept.scope = packed(ids[:position]), scope
        self.index.insert(kept, tokens)
        return kept

    def leave_file(self, kept: Kept) -> None:
        """Erase a snapshot's file, whether or not other tiers hold the snapshot."""
        if kept in self.disk:
            self.disk.remove(kept)
            self._forget_if_gone(kept)

    def expire_files(self, now: float) -> None:
        """Erase the files that were not used for too long."""
        for kept in self.disk.expired(now):
            self.leave_file(kept)

    def forget_files(self, kept: Kept) -> None:
        """Erase the files of a snapshot, and of what it continues, up to what a session or another file continues.

        Nor is any of it written again.
        """

        def needed(one: Kept) -> bool:
            return bool(one.pinned) or one in self.disk or any(map(needed, one.children))

        at: Kept | None = kept
        while at is not None and not (at.pinned or at.pins or any(map(needed, at.children))):
            at.ids, above = b"", at.parent
            self.leave_file(at)
            at = above

    def write_out(self, line: Sequence[Kept], write: Callable[[tuple[int, ...]], Write]) -> bool:
        """Have the next plan write a file beside the tiers; False if the last lies on disk alone.

        line: each a prefix of the next: the last is what is written, with the others' states as far as they lie where
        it does. write: of the keys that hold all this in host memory.
        """
        last = line[-1]
        if last.slot >= 0:
            there = [kept for kept in line if kept.slot >= 0]
            keys = self.host.through(
                [(self._elsewhere.get(k, k.slot), k.pages, k.position) for k in there], self.page_size
            )
        elif last in self.host:
            keys = self.host.keys(last, 0)
        else:
            return False
        self.disk.also(write(keys))
        return True

    def save(self, kept: Kept, now: float) -> None:
        """Write a snapshot to disk if host memory holds it."""
        if kept in self.host and kept.ids:
            for gone in self.disk.write(kept, self.host.line(kept), now):
                self._left(gone, "disk")

    def below_device(self, kept: Kept, have: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The places below the device of a snapshot's latents from `have` on: keys in host memory, or files."""
        return (self.host.keys(kept, have), ()) if kept in self.host else ((), self.disk.files(kept, have))

    def _leaves_host(self, kept: Kept, now: float) -> None:
        """Write a snapshot that host memory evicts to disk, unless another kept snapshot continues it."""
        if not kept.children:
            self.save(kept, now)

    def write_failed(self, file: str) -> None:
        """Forget a file that could not be written."""
        for kept in self.disk.of_file(file):
            self.disk.remove(kept)
            self._left(kept, "disk")

    def lost_on_disk(self, kept: Kept) -> None:
        """Forget a snapshot whose files are damaged, and all snapshots there that continue it."""
        for one in self.disk.continued_by(kept) if kept in self.disk else ():
            self.disk.remove(one)
            self._left(one, "disk")

    def park(self, kept: Kept, now: float) -> str | None:
        """Move a snapshot off the device with the next plan. Returns the reason if it has to stay."""
        if kept.slot < 0:
            return None
        if kept not in self.host:
            if not self.budget.host_bytes:
                return "its worker has no tier below the device: set cache.host_bytes"
            self._store(kept, now)
            if kept not in self.host:
                return "its worker's host memory has no room for it: raise cache.host_bytes"
        self._parking.append(kept)
        return None

    def unpark(self, kept: Kept) -> None:
        """Leave a snapshot on the device that was to move off it: a sequence begins from it after all."""
        if kept in self._parking:
            self._parking.remove(kept)

    # Evicting

    def make_pages(self, count: int, now: float) -> bool:
        """Evict until `count` pages are free. If kept snapshots hold too few pages, evict nothing and return False."""
        if self.pages.free + self.pages.reclaimable < count:
            return False
        while self.pages.free < count:
            there = [k for k in self.index if k.pages and not k.pins]
            # A snapshot that others continue mostly shares its pages with them. If none of these may go, it may yet
            # have some of its own.
            leaves = (k for k in there if not any(c.pages for c in k.children))
            victim = self._least(now, leaves) or self._least(now, (k for k in there if self._frees_pages(k)))
            if victim is None:
                return False
            self._leave_device(victim)
        return True

    def _frees_pages(self, kept: Kept) -> bool:
        return any(self.pages.refs(page) == 1 for page in kept.pages)

    def lost_on_host(self, kept: Kept) -> None:
        """Forget a snapshot that is damaged in host memory, and all snapshots there that continue it."""
        for one in self.host.continued_by(kept) if kept in self.host else ():
            self.host.remove(one)
            self._left_host(one)

    def clear(self) -> None:
        """Evict every snapshot that no copy reads now."""
        for kept in sorted(self.index, key=lambda k: -k.position):
            if kept.pins:
                continue
            if kept in self.host and self.host.continued_by(kept) == [kept]:
                self.host.remove(kept)
                self._left_host(kept)
            if kept.slot >= 0:
                self._leave_device(kept)
            if kept in self.disk and self.disk.continued_by(kept) == [kept]:
                self.lost_on_disk(kept)

    def take_changes(self) -> tuple[tuple[Store, ...], tuple[Drop, ...]]:
        """Take the changes of the host tier and the disk tier for the next plan."""
        changes = self.host.take_changes()
        self._elsewhere.clear()
        parking, self._parking = self._parking, []
        for kept in parking:
            if kept.slot >= 0 and kept in self.host:
                if kept.pins:  # this plan reads it
                    self._parking.append(kept)
                else:
                    self._leave_device(kept)
        return changes

    def _least(self, now: float, among: Iterable[Kept]) -> Kept | None:
        return min(among, key=lambda k: k.value(now) / self.budget.bytes_of(k.saved_tokens), default=None)

    def _leave_device(self, kept: Kept) -> None:
        self.totals.evicted["device"] += 1
        self.index.displace(kept)
        self.pages.give(kept.pages, cached=True)
        self.slots.give([kept.slot], cached=True)
        kept.pages, kept.slot = (), -1
        self._forget_if_gone(kept)

    def _store(self, kept: Kept, now: float) -> None:
        """Copy a snapshot to host memory if it fits there."""
        slot, cut = self._elsewhere.get(kept, kept.slot), self.disk.end_above(kept)
        for gone in self.host.store(kept, slot, self.page_size, now, cut):
            self._left_host(gone)

    def _left_host(self, kept: Kept) -> None:
        self._left(kept, "host")

    def _left(self, kept: Kept, tier: Tier) -> None:
        self.totals.evicted[tier] += 1
        self._forget_if_gone(kept)

    def _forget_if_gone(self, kept: Kept) -> None:
        if self.tier(kept) is None and kept in self.index:
            self.index.remove(kept)
            self.pins.release_all(kept)
        self.on_change(kept)
