"""Moves files into a GPU's memory: a thread reads into one pinned buffer while the other one is copied."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# The bytes of one buffer; each loading thread has two.
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Some bytes of a file to move. read: fills a buffer of `size` bytes.

    place: puts a copy on the GPU in its place.
    """

    size: int
    read: Callable[[Tensor], None]
    place: Callable[[Tensor], None]


class Lane(Protocol):
    """One thread's buffers, and the copies from them to a device."""

    buffers: tuple[Tensor, Tensor]

    def send(self, which: int, size: int, place: Callable[[Tensor], None]) -> None:
        """Begin to copy so many bytes of a buffer; `place` takes the copy."""

    def wait(self, which: int) -> None:
        """Wait until the bytes last sent from a buffer are in their place."""


def upload(lane: Lane, blocks: Iterable[Block]) -> None:
    """Move blocks, of at most a buffer's size, one after the other; all are in their places on return."""
    for turn, block in enumerate(blocks):
        which = turn % 2
        lane.wait(which)
        block.read(lane.buffers[which][: block.size])
        lane.send(which, block.size, block.place)
    lane.wait(0)
    lane.wait(1)


class CudaLane:
    """A lane with a CUDA stream of its own. The thread that makes it works on `device` from then on."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._events = (torch.cuda.Event(blocking=True), torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        first, second = (torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        self.buffers = (first, second)

    def send(self, which: int, size: int, place: Callable[[Tensor], None]) -> None:
        with torch.cuda.stream(self._stream):
            # Slices and conversions are done on the device, because the host would need a further copy.
            place(self.buffers[which][:size].to(self._device, non_blocking=True))
            self._events[which].record(self._stream)

    def wait(self, which: int) -> None:
        self._events[which].synchronize()
