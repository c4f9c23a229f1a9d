"""A worker's sizes, as its scheduler needs them."""

from dataclasses import dataclass, field

from workers.cache.budget import Budget


@dataclass(frozen=True, slots=True)
class Limits:
    """A worker's sizes. window: snapshots pulled at once. hold_s: how long a snapshot waits to be pulled.

    cache: what may be kept of sequences that have gone on or ended.
    """

    pages: int
    page_size: int
    slots: int
    max_model_len: int
    max_step_tokens: int
    window: int
    hold_s: float
    cache: Budget = field(default_factory=Budget)

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
