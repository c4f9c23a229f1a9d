"""Defines a request at a worker: its tokens, how many are computed, and its slot and pages."""

import array
from dataclasses import dataclass, field
from enum import Enum

from wire.digest import PageDigests
from wire.protocol import Miss, SamplingParams, Tier, TokenLogprob
from workers.cache.index import Tokens
from workers.cache.kept import Kept
from workers.cache.totals import Origin

_NEVER = 1 << 62


class State(Enum):
    """The state of a sequence at its worker."""

    QUEUED = "queued"  # holds nothing
    PULLING = "pulling"  # holds slot and pages; its snapshot is on the way from a peer or from host memory
    DISPLACED = "displaced"  # holds nothing and waits for room like a queued one; its snapshot is on the way
    RUNNING = "running"  # holds slot and pages; has tokens to compute
    HELD = "held"  # prompt computed, first token sampled; its snapshot waits to be sent
    SENDING = "sending"  # holds nothing; its snapshot is leaving


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a sequence's snapshot.

    peer: the worker that holds it. position: its number of tokens. kept: whether it is a snapshot in the peer's prefix
    cache, after which no token was sampled; otherwise it is the hand-off of this request.
    """

    peer: str
    position: int
    kept: bool = False


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in one worker.

    priority: lower goes first, and takes the places of higher ones. tokens: prompt, then generated. computed: how many
    of them have their latents and state in the caches; the rest is what the next steps compute. most: tokens it may
    have in the end. epoch: counts the times it lost its places, so that a step planned before is told from one planned
    after. exported: latents already handed to the transfer layer, or never to be sent since the peer has them; leaves:
    ranks have room for the snapshot until it is sent; gone: all of it has left, though the step that exported it is not
    committed yet. source: where its snapshot comes from; None once installed, or when the prompt is computed here.
    handoff: the snapshot leaves after the first token, to `peer`, of `peer_ranks` ranks, once that has pulled. warm:
    only its state is wanted, and nothing of what is computed after it. scope: whose prefixes it may share. boundaries:
    positions at which turns of the prompt end. foreign: of so many of its first tokens a snapshot is kept elsewhere
    that does not fit here; rewritten: what they say was rendered to so many other tokens before. keeps: positions at
    which its state is yet to be kept. keep_at: an answer's state is kept next once so many tokens are computed; told:
    the tokens of one that was kept, which its router is yet to be told. fetching: the kept snapshot it waits for from
    host memory or disk; fetched_from: which of the two. have: latents that need not come with a snapshot, as they are
    on the device. begun: its first tokens are being computed; begin: prompt tokens that came from a snapshot, from
    `origin`; missed: why the others did not.
    leave_by: when it is given up to another worker at the latest; None while its worker is not to end.
    behind: at its priority it comes after those that are not.
    """

    request_id: str
    tokens: "array.array[int]"
    prompt_tokens: int
    sampling: SamplingParams
    priority: int
    order: int
    handoff: bool
    source: Source | None
    arrived: float
    behind: bool = False
    scope: str = ""
    warm: bool = False
    boundaries: tuple[int, ...] = ()
    foreign: int = 0
    rewritten: int = 0
    state: State = State.QUEUED
    epoch: int = 0
    computed: int = 0
    most: int = 0
    exported: int = 0
    leaves: bool = False
    gone: bool = False
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    pages_on_ranks: int = 0
    admitted_on_ranks: bool = False
    digests: PageDigests = field(default_factory=lambda: PageDigests(1))
    keeps: list[int] = field(default_factory=list)
    keep_at: int = _NEVER
    told: int = 0
    fetching: Kept | None = None
    fetched_from: Tier | None = None
    have: int = 0
    begun: bool = False
    begin: int = 0
    origin: Origin | None = None
    missed: Miss | None = None
    leave_by: float | None = None
    peer: str | None = None
    peer_ranks: int = 0
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    started: float = 0.0
    first_token: float = 0.0
    held_at: float = 0.0
    header_at: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    transfer_s: float = 0.0

    @property
    def known(self) -> Tokens:
        """The tokens with their digests, for the prefix cache."""
        self.digests.extend(self.tokens)
        return Tokens(self.tokens, self.digests)

    @property
    def reach(self) -> int:
        """The number of tokens that a snapshot may cover at most: one is always computed, to sample after it."""
        return (self.prompt_tokens if self.handoff else len(self.tokens)) - 1

    @property
    def coming(self) -> int:
        """The number of latents that come with its snapshot."""
        position = self.source.position if self.source else self.fetching.position if self.fetching else self.have
        return position - self.have

    @property
    def pending(self) -> int:
        """The number of tokens to compute here: all known ones that are not computed.

        For a hand-off, only its prompt's.
        """
        return (self.prompt_tokens if self.handoff else len(self.tokens)) - self.computed

    @property
    def generated(self) -> int:
        """The number of tokens sampled so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def needs_history(self) -> bool:
        """Whether its sampler must know the ids so far."""
        s = self.sampling
        return s.repetition_penalty != 1.0 or s.presence_penalty != 0.0 or s.frequency_penalty != 0.0
