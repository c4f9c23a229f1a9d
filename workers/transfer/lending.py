"""Sends a rank's weights to the same rank of a starting worker, at a pace that leaves room for serving."""

import threading
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.transfer.channel import LinkBroken, SendChannel
from workers.transfer.control import Control
from workers.transfer.messages import WeightsHead
from workers.transfer.payload import pieces

# The share of time that lending takes of a rank that computes steps meanwhile.
_SHARE = 0.25
# A rank that has computed no step for so many seconds is not serving.
_IDLE_S = 0.5
# Seconds that either end waits for a piece, while the lender pauses or the borrower stores weights.
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that a rank lends.

    identity: the worker's weights id. plan: a digest of what is read into each tensor, in order, which must be equal at
    both ends. catalogue: the answers of the weights' source to the model, which the borrower's model gets too.
    """

    identity: str
    plan: str
    catalogue: bytes
    tensors: tuple[Tensor, ...]

    @property
    def total(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def pause(sent_s: float, borrowers: int, busy: bool) -> float:
    """Seconds to wait after a piece that took `sent_s` to send, so that all borrowers together keep to the share."""
    return sent_s * (borrowers / _SHARE - 1) if busy else 0.0


class Lending:
    """Lends to any number of borrowers, each in the thread of its link."""

    def __init__(self) -> None:
        self.weights: Weights | None = None
        self.lent = 0  # bytes lent so far
        self._stepped = -_IDLE_S
        self._borrowers = 0
        self._lock = threading.Lock()

    def stepped(self) -> None:
        """Note that the rank computed a step, so lending must leave it time."""
        self._stepped = time.monotonic()

    def lend(self, identity: str, control: Control, channel: SendChannel) -> None:
        """Send all weights to a borrower; LinkBroken also if it wants other weights."""
        weights = self.weights
        if weights is None or weights.identity != identity:
            raise LinkBroken("this worker holds other weights, or lends none")
        channel.patience_s = PATIENCE_S
        control.send(WeightsHead(weights.plan, len(weights.catalogue), weights.total))
        with self._lock:
            self._borrowers += 1
        try:
            self._send(channel, torch.frombuffer(bytearray(weights.catalogue), dtype=torch.uint8))
            for tensor in weights.tensors:
                self._send(channel, tensor)
        finally:
            with self._lock:
                self._borrowers -= 1

    def _send(self, channel: SendChannel, tensor: Tensor) -> None:
        for piece in pieces(channel, tensor.to(channel.device).contiguous()):
            began = time.monotonic()
            channel.send(piece)
            now = time.monotonic()
            with self._lock:
                self.lent += piece.numel()
            if wait := pause(now - began, self._borrowers, now - self._stepped < _IDLE_S):
                time.sleep(wait)
