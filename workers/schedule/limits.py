"""A worker's sizes, as its scheduler needs them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.cache.budget import Budget


@dataclass(frozen=True, slots=True)
class Staging:
    """A rank's memory for snapshots in transfer. With sizes of 0 it is never full.

    budget: bytes in all. state: bytes of a rank's linear state. token: bytes of one token's latents, which `tp` ranks
    share.
    """

    budget: int = 0
    state: int = 0
    token: int = 0
    tp: int = 1

    def bytes_of(self, tokens: int) -> int:
        """Bytes of a rank's share of a snapshot with the latents of so many tokens."""
        return self.state + -(-tokens // self.tp) * self.token

    def full(self, under_way: Iterable[int], tokens: int) -> bool:
        """Whether a further snapshot has to wait for some of those in transfer; all are given by their tokens."""
        sizes = [self.bytes_of(n) for n in under_way]
        # A single snapshot always fits: the budget is at least that of the longest.
        return bool(sizes) and sum(sizes) + self.bytes_of(tokens) > self.budget


@dataclass(frozen=True, slots=True)
class Limits:
    """A worker's sizes. window: snapshots pulled at once. hold_s: how long a snapshot waits to be pulled.

    answer_tokens: an answer's state is kept each so many tokens; 0 for never. cache: the prefix cache's budget.
    staging: memory for arriving snapshots, and as much again for leaving ones. drafts: tokens drafted for a sequence in
    a step at most. adapts: whether fewer are drafted if they do not pay.
    """

    pages: int
    page_size: int
    slots: int
    max_model_len: int
    max_step_tokens: int
    window: int
    hold_s: float
    cache: Budget = field(default_factory=Budget)
    staging: Staging = field(default_factory=Staging)
    drafts: int = 0
    adapts: bool = True
    answer_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_step_tokens < self.slots:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} is below slots {self.slots}: "
                "a step must have room for a token of every sequence"
            )
        if self.pages * self.page_size < self.max_model_len:
            raise ValueError(
                f"{self.pages} pages of {self.page_size} tokens hold less than one sequence of "
                f"max_model_len {self.max_model_len}: raise pages or lower max_model_len"
            )
