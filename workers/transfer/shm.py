"""Payload through memory that two processes of one host share: a ring of slots, each a piece long.

The memory is a file without a name: it lives as long as one of the two has it mapped, so nothing is left behind
whichever way they end, and the size of /dev/shm does not bound it. The receiver opens it through the sender's
/proc entry, which works exactly where both share a kernel and a process namespace and belong to one user.
"""

import mmap
import os
import secrets

import torch
from torch import Tensor

from workers.transfer.channel import LinkBroken, ReceiveChannel
from workers.transfer.control import Control
from workers.transfer.messages import ArenaOffer, Emptied
from workers.transfer.ring import RingSender, await_filled

SLOTS = 8
# Small enough that a slot is still in the cache when the receiver copies it out, large enough that the message
# beside each costs little.
PIECE = 2 * 1024 * 1024
# The size of the first page, before the slots, which has the nonce.
_HEADER = 4096


class ShmSender(RingSender):
    """Makes the arena."""

    kind = "shm"
    device = torch.device("cpu")
    piece = PIECE

    def __init__(self, control: Control, slots: int = SLOTS) -> None:
        """OSError where the host has no such memory."""
        super().__init__(control, slots, PIECE)
        nonce = secrets.token_bytes(16)
        size = _HEADER + slots * PIECE
        self._file = os.fdopen(os.memfd_create("ling-transfer"), "r+b", buffering=0)
        self._file.truncate(size)
        arena = mmap.mmap(self._file.fileno(), size)
        arena[: len(nonce)] = nonce
        self._memory = _slots(arena, slots)
        # The first touch of a page costs ten times a copy of it, so touch them before the first snapshot waits.
        self._memory.zero_()
        self.offer = ArenaOffer(os.getpid(), self._file.fileno(), slots, PIECE, nonce)

    def _fill(self, slot: int, data: Tensor) -> None:
        self._memory[slot, : data.numel()].copy_(data)

    def close(self) -> None:
        super().close()
        self._file.close()


class ShmReceiver(ReceiveChannel):
    """Maps the offered arena; OSError or LinkBroken if that is not possible from here."""

    kind = "shm"
    device = torch.device("cpu")
    piece = PIECE

    def __init__(self, control: Control, offer: ArenaOffer) -> None:
        if offer.slot_bytes != PIECE:
            raise LinkBroken(f"the sender's pieces are {offer.slot_bytes} bytes, here they are {PIECE}")
        self._control = control
        self._next = 0
        size = _HEADER + offer.slots * PIECE
        # In another namespace this number may be any file, so don't wait for it, and identify it by its nonce.
        fd = os.open(f"/proc/{offer.pid}/fd/{offer.fd}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != size:
                raise LinkBroken("the sender's shared memory is not the one offered")
            arena = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        if arena[: len(offer.nonce)] != offer.nonce:
            raise LinkBroken("the sender's shared memory is not the one offered")
        self._slots = _slots(arena, offer.slots)

    def receive(self, piece: Tensor) -> None:
        await_filled(self._control, piece.numel())
        piece.copy_(self._slots[self._next % len(self._slots), : piece.numel()])
        self._next += 1
        self._control.send(Emptied())

    def close(self) -> None:
        """Release the mapping; it ends with its last user, which may still be copying."""


def _slots(arena: mmap.mmap, slots: int) -> Tensor:
    return torch.frombuffer(arena, dtype=torch.uint8, offset=_HEADER).view(slots, PIECE)
