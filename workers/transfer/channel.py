"""The interface of payload channels: one link, from one prefill rank to one decode rank."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wire.liveness import SILENT_S
from workers.transfer.messages import Kind

# The bytes a second of the slowest link that does not count as stuck.
_SLOWEST = 25e6


class LinkBroken(RuntimeError):
    """The link is broken; the message gives the reason in words for an operator."""


class Channel(ABC):
    """One end. Payload moves one way, in order, from a `SendChannel` to a `ReceiveChannel`.

    kind: what moves payload. device: of payload tensors. piece: both ends cut payload into pieces of at most this many
    bytes. patience_s: a piece that takes so much longer than the slowest link would need counts as stuck.
    """

    kind: Kind
    device: torch.device
    piece: int
    patience_s: float = SILENT_S

    def allowed_s(self, size: int) -> float:
        """The seconds that a piece of so many bytes may take."""
        return self.patience_s + size / _SLOWEST

    @abstractmethod
    def close(self) -> None:
        """Release memory and connections, and fail waiting calls if possible; may be called twice."""


class SendChannel(Channel):
    """The prefill rank's end; one thread sends."""

    @abstractmethod
    def send(self, piece: Tensor) -> None:
        """Send a contiguous uint8 tensor of at least one byte; its memory may be reused on return. LinkBroken."""


class ReceiveChannel(Channel):
    """The decode rank's end; one thread receives."""

    @abstractmethod
    def receive(self, piece: Tensor) -> None:
        """Fill a contiguous uint8 tensor with the next piece, which must be as long. LinkBroken."""
