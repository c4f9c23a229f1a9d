"""The interface of collective operations. All ranks of a worker call the same operations in the same order."""

from abc import ABC, abstractmethod

from torch import Tensor

# Ranks of one worker step together, so a rank that is silent this long has died or hangs.
SILENT_S = 60.0


class RankLost(RuntimeError):
    """A peer rank died or stopped answering; the group can't go on."""


class Collectives(ABC):
    """The operations a step needs, over `size` ranks."""

    rank: int
    size: int

    @abstractmethod
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place where possible; returns the sum. The order of addition is by rank, so every
        rank gets the same bits."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        """Concatenate the ranks' equal-shaped tensors along `dim`, in rank order."""

    @abstractmethod
    def barrier(self, patience_s: float = SILENT_S) -> None:
        """Return once all ranks have called; RankLost if one has not within `patience_s`, longer or shorter than what
        the other operations wait."""

    @abstractmethod
    def close(self) -> None:
        """Free shared memory and process groups; a second call does nothing."""


class Solo(Collectives):
    """A group of one rank."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor

    def barrier(self, patience_s: float = SILENT_S) -> None:
        return None

    def close(self) -> None:
        return None
