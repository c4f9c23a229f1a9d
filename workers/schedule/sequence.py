"""One request as a worker's leader sees it: its tokens, how far they are computed, and what it holds."""

from dataclasses import dataclass, field
from enum import Enum

from wire.protocol import SamplingParams, TokenLogprob


class State(Enum):
    """Where a sequence stands in its worker."""

    QUEUED = "queued"  # holds nothing
    PULLING = "pulling"  # holds slot and pages; its snapshot is on the way
    PARKED = "parked"  # holds nothing and waits for room like a queued one; its snapshot is on the way
    RUNNING = "running"  # holds slot and pages; has tokens to compute
    HELD = "held"  # prompt computed, first token sampled; its snapshot waits to be sent
    SENDING = "sending"  # holds nothing; its snapshot is leaving


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in one worker.

    priority: lower goes first, and takes the places of higher ones. tokens: prompt, then generated. computed: how
    many of them have their latents and state in the caches; the rest is what the next steps compute. exported:
    latents already handed to the transfer layer; gone: all of the snapshot has left, though the step that exported
    it is not committed yet.
    source: the worker its snapshot comes from; None once installed, or when the prompt is computed here.
    handoff: the snapshot leaves after the first token, to `peer` once that has pulled.
    """

    request_id: str
    tokens: list[int]
    prompt_tokens: int
    sampling: SamplingParams
    priority: int
    order: int
    handoff: bool
    source: str | None
    arrived: float
    state: State = State.QUEUED
    computed: int = 0
    exported: int = 0
    gone: bool = False
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    pages_on_ranks: int = 0
    admitted_on_ranks: bool = False
    peer: str | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    started: float = 0.0
    first_token: float = 0.0
    held_at: float = 0.0
    header_at: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    transfer_s: float = 0.0

    @property
    def pending(self) -> int:
        """Tokens to be computed here: all that are known and not computed yet, of a hand-off its prompt's alone."""
        return (self.prompt_tokens if self.handoff else len(self.tokens)) - self.computed

    @property
    def generated(self) -> int:
        """Tokens sampled so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def needs_history(self) -> bool:
        """Whether its sampler must know the ids so far."""
        s = self.sampling
        return s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0
