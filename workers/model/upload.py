"""From files into a GPU's memory: a thread reads ahead into one pinned buffer while the other one is copied."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Of one buffer; each thread that loads has two.
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Some bytes of a file on their way. read: fills a buffer of `size` bytes. place: puts a copy on the GPU where it
    belongs."""

    size: int
    read: Callable[[Tensor], None]
    place: Callable[[Tensor], None]


class Lane(Protocol):
    """One thread's buffers and its way from them to a device."""

    buffers: tuple[Tensor, Tensor]

    def send(self, which: int, size: int, place: Callable[[Tensor], None]) -> None:
        """Begin to copy so many bytes of a buffer, and let `place` take the copy."""

    def wait(self, which: int) -> None:
        """Until what was last sent from a buffer is where it belongs."""


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
    """On a stream of its own. The thread that makes it works on `device` from then on."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._events = (torch.cuda.Event(blocking=True), torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
        first, second = (torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        self.buffers = (first, second)

    def send(self, which: int, size: int, place: Callable[[Tensor], None]) -> None:
        with torch.cuda.stream(self._stream):
            # What is cut out or converted is cut out and converted there: on the host that would be one more copy.
            place(self.buffers[which][:size].to(self._device, non_blocking=True))
            self._events[which].record(self._stream)

    def wait(self, which: int) -> None:
        self._events[which].synchronize()
