"""The index of the disk tier. Pure: plans carry the orders to write, read and erase files.

Each file holds a whole snapshot, so that no file needs another. Files are written from host memory.
"""

from dataclasses import dataclass

from workers.cache.budget import Budget
from workers.cache.kept import Kept
from workers.cache.moves import Erase, Write


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a worker's files, and the fields that their `SnapshotHead`s share."""

    folder: str
    weights_id: str
    layout: str
    state_dtype: str


class DiskTier:
    """The snapshots on disk. After any mix of calls `bytes` is within the budget. Without a place it holds nothing."""

    def __init__(self, budget: Budget, place: Place | None = None) -> None:
        self._budget = budget
        self.place = place
        self.bytes = 0
        self._entries: dict[Kept, tuple[str, int]] = {}  # file, bytes
        self._writes: list[Write] = []
        self._erases: list[Erase] = []

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def file(self, kept: Kept) -> str:
        """The path of a snapshot's file, without the rank."""
        return self._entries[kept][0]

    def write(self, kept: Kept, keys: tuple[int, ...], token_ids: bytes, scope: str, now: float) -> list[Kept]:
        """Write a snapshot from host memory if it fits. Returns the snapshots removed for it.

        keys: its entries in host memory.
        """
        if kept in self._entries or self.place is None:
            return []
        size = self._budget.bytes_of(kept.position) + len(token_ids)
        gone = self._make_room(size, now)
        if self.bytes + size <= self._budget.disk_bytes:
            place = self.place
            file = f"{place.folder}/{kept.position}-{kept.digest.hex()}"
            self.add(kept, file, size)
            self._erases = [erase for erase in self._erases if erase.file != file]  # it is overwritten
            self._writes.append(
                Write(file, keys, kept.position, token_ids, scope, place.weights_id, place.layout, place.state_dtype)
            )
        return gone

    def also(self, write: Write) -> None:
        """Write a file that is none of this tier's."""
        self._writes.append(write)

    def add(self, kept: Kept, file: str, size: int) -> None:
        """Add a file that exists or is about to be written."""
        self._entries[kept] = (file, size)
        self.bytes += size

    def remove(self, kept: Kept) -> None:
        """Erase a snapshot's file."""
        file, size = self._entries.pop(kept)
        self.bytes -= size
        self._writes = [write for write in self._writes if write.file != file]
        self._erases.append(Erase(file))

    def by_file(self, file: str) -> Kept | None:
        """The snapshot of a file."""
        return next((kept for kept, (path, _) in self._entries.items() if path == file), None)

    def take_changes(self) -> tuple[tuple[Write, ...], tuple[Erase, ...]]:
        """Take the ranks' orders for the next plan."""
        changes = tuple(self._writes), tuple(self._erases)
        self._writes, self._erases = [], []
        return changes

    def _make_room(self, size: int, now: float) -> list[Kept]:
        gone: list[Kept] = []
        while self._entries and size <= self._budget.disk_bytes < self.bytes + size:
            free = [(kept, held) for kept, (_, held) in self._entries.items() if not kept.pins]
            if not free:
                break
            # Sessions' ends go last.
            victim, _ = min(free, key=lambda pair: (bool(pair[0].pinned), pair[0].value(now) / pair[1]))
            self.remove(victim)
            gone.append(victim)
        return gone
