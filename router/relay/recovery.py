"""Decides what happens to a sequence when its worker fails. Pure."""

from dataclasses import dataclass
from typing import Literal

# death: a worker ended, or the connection to it. node: it ended right after another one of its node, and had said
# nothing since, so both may have the same cause. silence: the worker says nothing, as it is stopped, or the network is
# cut. transfer: a snapshot did not arrive at the other worker. moved: the worker is about to end and has kept the
# sequence's state for another one.
Cause = Literal["death", "node", "silence", "transfer", "moved"]
Loss = Literal["death", "node", "silence"]
_MOST_TRANSFERS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class Again:
    """Try at other workers after `after_s` seconds. apart: only while no other sequence is tried apart."""

    after_s: float
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Enough:
    """Do not try again. quarantined: the sequence itself seems to end workers."""

    quarantined: bool


class Setbacks:
    """A sequence's failures since its last token; each token shows that the sequence can be computed.

    A worker that ends takes innocent sequences with it. After a second death, a sequence that was alone at its worker
    is the cause. If there were several, each is tried apart, so that a third death shows which one it is.
    """

    __slots__ = ("deaths", "transfers")

    def __init__(self) -> None:
        self.deaths = 0
        self.transfers = 0

    def clear(self) -> None:
        """Forget all failures, because the sequence gained a token."""
        self.deaths = self.transfers = 0

    def add(self, cause: Cause, alone: bool) -> Again | Enough:
        """Count a failure and decide. alone: no other sequence of this router was at the worker."""
        if cause == "death":
            self.deaths += 1
            if self.deaths > 2 or (self.deaths == 2 and alone):
                return Enough(quarantined=True)
            return Again(0.0, apart=self.deaths == 2)
        self.transfers += 1
        if self.transfers > _MOST_TRANSFERS:
            return Enough(quarantined=False)
        return Again(min(_FIRST_PAUSE_S * 2 ** (self.transfers - 1), _LONGEST_PAUSE_S), apart=self.deaths >= 2)
