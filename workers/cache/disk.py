"""The index of the disk tier. Pure: plans carry the orders to write, read and erase files.

Files are written from host memory. One holds the latents that no file before it has, and a state: when a session grew
by a turn, only that turn's latents are written.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from workers.cache.budget import Budget
from workers.cache.chains import Chains, Entry
from workers.cache.kept import Kept
from workers.cache.moves import Erase, Write

# The bytes of a token's id.
_ID = 4


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a worker's files, and the fields that their `SnapshotHead`s share.

    run: in the names of the files that are written from now on, so that no two files ever have the same name.
    """

    folder: str
    weights_id: str
    layout: str
    state_dtype: str
    run: str = ""


class DiskTier:
    """The snapshots on disk. After any mix of calls `bytes` is within the budget. Without a place it holds nothing."""

    def __init__(self, budget: Budget, place: Place | None = None) -> None:
        self._budget = budget
        self.place = place
        self._chains = Chains[str]()
        self._files = 0
        self._writes: list[Write] = []
        self._erases: list[Erase] = []
        self._used: list[str] = []

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._chains

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)

    @property
    def bytes(self) -> int:
        """The bytes of all files."""
        return self._chains.bytes

    def files(self, kept: Kept, have: int) -> tuple[str, ...]:
        """The files with a snapshot's latents from `have` on, paths without the rank; the last has its state."""
        return self._chains.names(kept, have)

    def end_above(self, kept: Kept) -> int:
        """Where the longest snapshot on disk ends that this one continues; 0 if there is none."""
        entry = self._chains.above(kept, self._is_own)
        return entry.stop if entry is not None else 0

    def write(self, kept: Kept, line: list[Entry[int]], now: float) -> list[Kept]:
        """Write a snapshot from host memory if it fits. Returns the snapshots removed for it.

        line: its entries in host memory. What an earlier file holds is left out, if these are cut where that ends.
        """
        if kept in self._chains or self.place is None or now - kept.used >= self._budget.disk_ttl_s:
            return []
        place, cuts = self.place, {entry.start for entry in line}
        above = self._chains.above(kept, lambda entry: self._is_own(entry) and entry.stop in cuts)
        start = above.stop if above is not None else 0
        latents, state = (kept.position - start) * (self._budget.token_bytes + _ID), self._budget.state_bytes
        gone = self.make_room(latents + state, now, above)
        if self.bytes + latents + state > self._budget.disk_bytes:
            return gone
        file = f"{place.folder}/{kept.position}-{kept.digest.hex()}-{place.run}{self._files}"
        self._files += 1
        self._chains.add(Entry(file, kept, above, start, kept.position, latents, state))
        self._writes.append(
            Write(
                file, tuple(entry.name for entry in line if entry.start >= start), kept.position,
                kept.ids[start * _ID :], kept.scope, place.weights_id, place.layout, place.state_dtype,
                start=start, before=above.name.rpartition("/")[2] if above is not None else "",
                age_s=now - kept.used,
            )
        )  # fmt: skip
        return gone

    def also(self, write: Write) -> None:
        """Have the next plan write a file that is not part of this tier."""
        self._writes.append(write)

    def enter(self, entry: Entry[str]) -> None:
        """Add a file that exists."""
        self._chains.add(entry)

    def prune(self, entry: Entry[str]) -> None:
        """Erase a file that exists if it has no state, and no other needs it."""
        self._erase(self._chains.prune(entry))

    def use(self, kept: Kept) -> None:
        """Note that a snapshot was used just now, so that its file is kept for longer."""
        if kept in self._chains:
            self._used.append(self._chains.entry(kept).name)

    def take_used(self) -> list[str]:
        """Take the files that were used since the last call."""
        used, self._used = self._used, []
        return used

    def remove(self, kept: Kept) -> None:
        """Erase a snapshot's file, or the state in it where others need its latents."""
        self._erase(self._chains.remove(kept))

    def _erase(self, files: list[tuple[str, bool]]) -> None:
        for file, latents in files:
            if latents:  # nothing that was ordered before matters: the file may not even be written by now
                self._writes = [write for write in self._writes if write.file != file]
                self._erases = [erase for erase in self._erases if erase.file != file]
            self._erases.append(Erase(file, latents))

    def _is_own(self, entry: Entry[str]) -> bool:
        """Whether a file is in the worker's own folder."""
        return self.place is not None and entry.name.startswith(self.place.folder)

    def continued_by(self, kept: Kept) -> list[Kept]:
        """The snapshot and all others that need its latents, longest first."""
        return self._chains.continued_by(kept)

    def expired(self, now: float) -> list[Kept]:
        """The snapshots that were not used for as long as files are kept."""
        limit = now - self._budget.disk_ttl_s
        return [kept for kept in self._chains if kept.used <= limit and not kept.pins]

    def of_file(self, file: str) -> list[Kept]:
        """The snapshots that need a file, longest first."""
        return sorted((k for k in self._chains if file in self._chains.names(k, 0)), key=lambda k: -k.position)

    def take_changes(self) -> tuple[tuple[Write, ...], tuple[Erase, ...]]:
        """Take the ranks' orders for the next plan."""
        changes = tuple(self._writes), tuple(self._erases)
        self._writes, self._erases = [], []
        return changes

    def make_room(self, size: int, now: float, spared: Entry[str] | None = None) -> list[Kept]:
        """Remove the least valuable snapshots until `size` more bytes fit; sessions' ends last."""
        gone: list[Kept] = []
        while size <= self._budget.disk_bytes < self.bytes + size:
            victim = self._chains.least(lambda entry, k: (bool(k.pinned), k.value(now) / max(entry.freed, 1)), spared)
            if victim is None:
                break
            self.remove(victim)
            gone.append(victim)
        return gone
