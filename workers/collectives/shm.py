"""Collectives through shared memory, for ranks that are processes of one host."""

import fcntl
import mmap
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from workers.collectives.base import SILENT_S, Collectives, RankLost

_LINE = 64
_FLAGS = 4096
_SLOT_BYTES = 1 << 20
_SPINS = 20
_LOOK_S = 0.05
# After waiting this long, a peer must be computing: stop competing with it for a core.
_YIELD_S = 0.002
_NAP_S = 0.0001


def _fence() -> None:
    """Orders this rank's memory accesses before and after it, on CPUs that reorder stores too.

    One lock's release and the next one's acquire form a full barrier; a single pair lets stores slip in.
    """
    with _LOCK:
        pass
    with _LOCK:
        pass


_LOCK = threading.Lock()


class _Area:
    """One rank's file: a line with the number of its last operation, then two slots that operations alternate on."""

    def __init__(self, file: BinaryIO, slot_bytes: int) -> None:
        self.file = file
        self._map = mmap.mmap(file.fileno(), _FLAGS + 2 * slot_bytes)
        self._numbers = memoryview(self._map)[:_LINE].cast("q")
        data = torch.frombuffer(self._map, dtype=torch.uint8, offset=_FLAGS)
        self.slots = (data[:slot_bytes], data[slot_bytes:])

    @property
    def number(self) -> int:
        return self._numbers[0]

    @number.setter
    def number(self, value: int) -> None:
        self._numbers[0] = value

    def dead(self) -> bool:
        """Whether the owner, who holds a lock on the file while it lives, is gone."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.file, fcntl.LOCK_UN)
        return True


class ShmCollectives(Collectives):
    """Every rank writes into its own slot, raises its number, waits for the others' and reads their slots.

    A rank that has seen all numbers of operation n knows that all ranks have left operation n - 1, so two alternating
    slots are enough. folder: the group's own, in memory (tmpfs) for speed; its files are unlinked once all ranks have
    met. Raises RankLost within about `_LOOK_S` of a peer's death, or after `timeout_s` without an answer.
    """

    def __init__(
        self, rank: int, size: int, folder: Path, timeout_s: float = SILENT_S, slot_bytes: int = _SLOT_BYTES
    ) -> None:
        self.rank = rank
        self.size = size
        self._timeout = timeout_s
        self._slot_bytes = slot_bytes
        self._done = 0
        self._views: dict[tuple[int, int, torch.dtype], list[Tensor]] = {}
        self._areas: list[_Area] = []
        self._mine = self._create(folder / f"rank-{rank}")
        try:
            self._areas = [self._mine if r == rank else self._join(folder / f"rank-{r}", r) for r in range(size)]
            self.barrier(timeout_s)
        finally:
            (folder / f"rank-{rank}").unlink(missing_ok=True)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.flatten()
        for piece in self._pieces(flat):
            slots = self._exchange(piece)
            if piece.dtype == torch.float32:
                torch.add(slots[0], slots[1], out=piece)
                for slot in slots[2:]:
                    piece.add_(slot)
            else:
                # Rounded once in all, not once for each rank.
                total = slots[0].float()
                for slot in slots[1:]:
                    total.add_(slot.float())
                piece.copy_(total)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))
        return tensor

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        flat = tensor.reshape(-1)
        pieces = [[slot.clone() for slot in self._exchange(piece)] for piece in self._pieces(flat)]
        return torch.cat([torch.cat(parts).view(tensor.shape) for parts in zip(*pieces, strict=True)], dim)

    def barrier(self, patience_s: float = SILENT_S) -> None:
        self._arrive(patience_s)

    def close(self) -> None:
        if not self._areas:
            return
        # The mapping keeps a copy of the descriptor, and with it the lock, as long as any view lives.
        fcntl.flock(self._mine.file, fcntl.LOCK_UN)
        self._views.clear()
        for area in self._areas:
            area.file.close()
        self._areas.clear()

    def _pieces(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Cut a tensor into pieces that fit a slot."""
        most = self._slot_bytes // flat.element_size()
        return (flat,) if flat.numel() <= most else torch.split(flat, most)

    def _exchange(self, piece: Tensor) -> list[Tensor]:
        """Return all ranks' pieces, which must be read before the second next operation."""
        key = (self._done & 1, piece.numel(), piece.dtype)
        views = self._views.get(key)
        if views is None:
            if len(self._views) >= 256:
                self._views.clear()
            size = piece.numel() * piece.element_size()
            views = [area.slots[key[0]][:size].view(piece.dtype) for area in self._areas]
            self._views[key] = views
        views[self.rank].copy_(piece)
        self._arrive(self._timeout)
        return views

    def _arrive(self, patience_s: float) -> None:
        if not self._areas:
            raise RuntimeError("these collectives are closed")
        self._done += 1
        _fence()
        self._mine.number = self._done
        for rank, area in enumerate(self._areas):
            if area.number < self._done:
                self._wait(rank, area, patience_s)
        _fence()

    def _wait(self, rank: int, area: _Area, patience_s: float) -> None:
        for _ in range(_SPINS):
            if area.number >= self._done:
                return
        begun = looked = time.monotonic()
        while area.number < self._done:
            os.sched_yield()
            now = time.monotonic()
            if now - begun > _YIELD_S:
                time.sleep(_NAP_S)
            if now - looked > _LOOK_S:
                looked = now
                if area.dead() and area.number < self._done:
                    raise RankLost(f"rank {rank} died; rank {self.rank} waited for it in operation {self._done}")
                if now - begun > patience_s:
                    raise RankLost(f"rank {rank} did not answer rank {self.rank} within {patience_s:g} s")

    def _create(self, path: Path) -> _Area:
        # Locked and sized before it gets its name, so that no peer sees it incomplete.
        fresh = path.with_suffix(".new")
        file = fresh.open("w+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(_FLAGS + 2 * self._slot_bytes)
        fresh.rename(path)
        return _Area(file, self._slot_bytes)

    def _join(self, path: Path, rank: int) -> _Area:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                area = _Area(path.open("r+b"), self._slot_bytes)
            except FileNotFoundError:
                area = None
            # A file without a living owner is left over from another group.
            if area is not None and not area.dead():
                return area
            if time.monotonic() > deadline:
                raise RankLost(f"rank {rank} did not come to {path.parent} within {self._timeout:g} s")
            time.sleep(0.002)
