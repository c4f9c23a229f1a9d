"""A ring of slots in the sender's memory, which the receiver empties in order: what such channels have in common."""

import threading
from abc import abstractmethod

import torch
from torch import Tensor

from workers.transfer.channel import LinkBroken, SendChannel
from workers.transfer.control import Control
from workers.transfer.messages import Filled


class RingSender(SendChannel):
    """The sender's side: fills slot after slot. The thread that reads the control connection calls `emptied`."""

    def __init__(self, control: Control, slots: int, slot_bytes: int) -> None:
        self._control = control
        self._room = threading.Semaphore(slots)
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._filled = 0
        self._closed = False

    @abstractmethod
    def _fill(self, slot: int, data: Tensor) -> None:
        """Put the bytes into a slot; on return the receiver may read them."""

    def emptied(self) -> None:
        """Note that the receiver has emptied a slot."""
        self._room.release()

    def send(self, piece: Tensor) -> None:
        for data in torch.split(piece, self._slot_bytes):
            allowed_s = self.allowed_s(data.numel())
            if not self._room.acquire(timeout=allowed_s):
                raise LinkBroken(f"the receiver took nothing for {allowed_s:.1f} s")
            if self._closed:
                raise LinkBroken("the link is closed")
            slot = self._filled % self._slots
            self._filled += 1
            self._fill(slot, data)
            self._control.send(Filled(data.numel()))

    def close(self) -> None:
        self._closed = True
        self._room.release()


def await_filled(control: Control, count: int) -> None:
    """Wait until the sender has filled the next slot with so many bytes; LinkBroken."""
    message = control.receive()
    if not isinstance(message, Filled) or message.count != count:
        raise LinkBroken(f"expected a piece of {count} bytes, got {message}")
