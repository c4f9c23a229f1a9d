"""Payload by NIXL: the receiver reads the sender's memory, over RDMA where both hosts have it.

The receiver reads, and the sender never writes to it, so that an end that gives a link up knows that nobody writes to
its memory any more. A sender that closes a link clears the nonce at the beginning of its memory first; a receiver that
finds it after its copies has copied what was there.
"""

import secrets
import threading
import time
from contextlib import suppress

import torch
from torch import Tensor

from workers.transfer.channel import LinkBroken, ReceiveChannel
from workers.transfer.control import Control
from workers.transfer.device import once_computed, own_stream
from workers.transfer.messages import Emptied, NixlOffer
from workers.transfer.nixl_agent import Memory
from workers.transfer.ring import RingSender, await_filled

SLOTS = 4
# So large that two of them on their way keep a fast network busy while Python handles a third.
SLOT = 4 * 1024 * 1024
PIECE = SLOTS * SLOT
_HEADER = 4096
_POLL_S = 50e-6
_JOIN_S = 2.0


class NixlSender(RingSender):
    """The prefill rank's end. The agent is one thread's, which works while the receiver may be reading."""

    kind = "nixl"
    piece = PIECE

    def __init__(self, control: Control, device: torch.device, host: str) -> None:
        """Register memory and create the agent; LinkBroken if NIXL can't work here."""
        super().__init__(control, SLOTS, SLOT)
        self.device = device
        self._memory = Memory(_HEADER + SLOTS * SLOT, device, host)
        self._emptied = 0
        self._standing = False
        self._due = threading.Event()
        self._due.set()
        nonce = secrets.token_bytes(16)
        self._bytes = self._memory.bytes
        self._bytes[: len(nonce)] = torch.tensor(list(nonce), dtype=torch.uint8)
        once_computed(device)()
        self.offer = NixlOffer(self._memory.agent, self._bytes.data_ptr(), device.index, SLOTS, SLOT, nonce)
        self._thread = threading.Thread(target=self._tend, name="transfer-nixl", daemon=True)
        self._thread.start()

    def stand(self) -> None:
        """Note that the receiver has accepted the offer."""
        self._standing = True

    def emptied(self) -> None:
        self._emptied += 1
        super().emptied()

    def close(self) -> None:
        super().close()
        self._due.set()
        self._thread.join(_JOIN_S)

    def _fill(self, slot: int, data: Tensor) -> None:
        begin = _HEADER + slot * SLOT
        self._bytes[begin : begin + data.numel()].copy_(data)
        once_computed(self.device)()
        self._due.set()

    def _tend(self) -> None:
        with own_stream(self.device):
            while not self._closed:
                self._due.wait()
                self._due.clear()
                while not self._closed and not (self._standing and self._emptied == self._filled):
                    with suppress(LinkBroken):  # the control connection tells of a peer that is gone
                        self._memory.progress()
                    time.sleep(_POLL_S)
            self._bytes[:_HEADER].zero_()
            once_computed(self.device)()
            self._memory.close()


class NixlReceiver(ReceiveChannel):
    """The decode rank's end, in use by one thread; `close` by any. LinkBroken if the offered memory can't be read."""

    kind = "nixl"
    piece = PIECE

    def __init__(self, control: Control, offer: NixlOffer, device: torch.device, host: str) -> None:
        if (offer.slots, offer.slot_bytes) != (SLOTS, SLOT):
            raise LinkBroken(f"the sender has {offer.slots} slots of {offer.slot_bytes} bytes, here {SLOTS} of {SLOT}")
        self.device = device
        self._control = control
        self._offer = offer
        self._next = 0
        self._closed = False
        self._lock = threading.Lock()
        self._memory: Memory | None = Memory(_HEADER + SLOTS * SLOT, device, host)
        try:
            self._memory.meet(offer.agent)
            self._check(self._memory)
        except LinkBroken:
            self.close()
            raise

    def receive(self, piece: Tensor) -> None:
        with self._lock:
            memory = self._memory
            if memory is None:
                raise LinkBroken("the link is closed")
            before: tuple[object, int, Tensor] | None = None
            for index, room in enumerate(torch.split(piece, SLOT)):
                await_filled(self._control, room.numel())
                at = _HEADER + self._next % SLOTS * SLOT
                handle = memory.read(_HEADER + index * SLOT, self._offer.address + at, self._offer.gpu, room.numel())
                self._next += 1
                if before is not None:
                    self._take(memory, *before)
                    self._control.send(Emptied())
                before = handle, index, room
            if before is not None:
                self._take(memory, *before)
                self._check(memory)
                # Last, as the sender works for copies no longer than its slots are in use.
                self._control.send(Emptied())
            once_computed(self.device)()

    def close(self) -> None:
        self._closed = True
        with self._lock:
            memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def _take(self, memory: Memory, handle: object, index: int, room: Tensor) -> None:
        self._wait(memory, handle, room.numel())
        begin = _HEADER + index * SLOT
        room.copy_(memory.bytes[begin : begin + room.numel()])

    def _check(self, memory: Memory) -> None:
        """Read the nonce; LinkBroken if it is not the one offered."""
        nonce = self._offer.nonce
        self._wait(memory, memory.read(0, self._offer.address, self._offer.gpu, len(nonce)), len(nonce))
        if bytes(memory.bytes[: len(nonce)].tolist()) != nonce:
            raise LinkBroken("the sender's memory is not the one offered, or it has closed the link")

    def _wait(self, memory: Memory, handle: object, size: int) -> None:
        allowed_s = self.allowed_s(size)
        deadline = time.monotonic() + allowed_s
        while not memory.done(handle):
            if self._closed:
                raise LinkBroken("the link is closed")
            if self._control.gone():
                raise LinkBroken("the peer closed the connection or died")
            if time.monotonic() > deadline:
                raise LinkBroken(f"nothing moved for {allowed_s:.1f} s")
            time.sleep(_POLL_S)
