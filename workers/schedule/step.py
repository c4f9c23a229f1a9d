"""What a leader tells its ranks each step, and what comes back. Plain data; `RANKS` frames it."""

from dataclasses import dataclass, field
from typing import get_args

from wire.codec import Codec
from wire.protocol import Data, Grammar, SamplingParams, TokenLogprob
from workers.cache.moves import Copy, Drop, Erase, Fetch, Lend, Store, Write


class Row(Data, frozen=True):
    """One sequence's tokens in a step: `token_ids` at positions start, start+1, … in `slot`.

    new_pages: pages added to the slot's page table from index `page_offset` on, before the step.
    sample: sample a token after the last one. next_ids: where the prompt's log-probabilities were asked for,
    the prompt ids that follow the row's first tokens; else (). keeps: (count, state slot) pairs: the state after the
    row's first `count` tokens is copied into that slot on the way. drafts: so many more are drafted, and verified
    behind the row's one token; the state stays as it is until a `Commit`. follows: the token after the row where it
    is known, else -1.
    """

    slot: int
    start: int
    token_ids: tuple[int, ...]
    page_offset: int
    new_pages: tuple[int, ...]
    sample: bool
    next_ids: tuple[int, ...] = ()
    keeps: tuple[tuple[int, int], ...] = ()
    drafts: int = 0
    follows: int = -1

    @property
    def count(self) -> int:
        """Tokens the row computes."""
        return len(self.token_ids) + self.drafts


@dataclass(frozen=True, slots=True)
class Commit:
    """The state in `slot` takes in the first `tokens` tokens of the row that the previous step verified there."""

    slot: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """The step was planned while the one before it ran: that one's rows go on behind the tokens they sample there.

    A row goes on with as many drafts as before. It does not if it ends with a stop token or fails, or if its slot is
    in `ended`. pages: the slots whose page tables grow before the step; of each the first new index, and the new pages.
    """

    ended: tuple[int, ...]
    pages: tuple[tuple[int, int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Admit:
    """A sequence takes `slot`: its sampler, and its ids so far where a penalty needs them (else ()).

    prompt_tokens: how many of `token_ids` are prompt (presence and frequency penalties count the rest only).
    generated: the ids after the prompt where a grammar needs them (else ()).
    """

    slot: int
    sampling: SamplingParams
    token_ids: tuple[int, ...]
    prompt_tokens: int
    generated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """Connect this rank to one of a worker's `senders` ranks, to receive its share of snapshots."""

    peer: str
    host: str
    port: int
    senders: int = 1


@dataclass(frozen=True, slots=True)
class LinkAll:
    """Each rank connects to the peer's ranks that hold its heads' states. endpoints: of the peer's ranks, in order."""

    peer: str
    endpoints: tuple[tuple[str, int], ...]

    def of(self, rank: int, ranks: int) -> tuple[Link, ...]:
        """The links that one of so many ranks makes, in the order of its heads."""
        senders = len(self.endpoints)
        first = rank * senders // ranks
        return tuple(
            Link(self.peer, host, port, senders)
            for host, port in self.endpoints[first : first + max(1, senders // ranks)]
        )


@dataclass(frozen=True, slots=True)
class Unlink:
    """The peer is gone: drop the link and whatever of its snapshots has not been installed."""

    peer: str


@dataclass(frozen=True, slots=True)
class Expect:
    """Snapshot `request_id` will come over the link to `peer`: latents [start, tokens), then the state."""

    request_id: str
    peer: str
    tokens: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop a snapshot: what has arrived of it and whatever still arrives.

    leaving: and what waits here to be sent of it. A request may both pull a kept snapshot and hand its own on.
    """

    request_id: str
    leaving: bool = True


@dataclass(frozen=True, slots=True)
class Install:
    """Write a snapshot that has come into a slot and pages: its latents are those from position `start` on.

    `pages` are the sequence's from start // page_size on. host: it was fetched from host memory, not from a peer.
    """

    request_id: str
    slot: int
    pages: tuple[int, ...]
    start: int = 0
    host: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """Send latents [start, stop) of a sequence to `peer` and, if `last`, its linear state after them.

    `pages` are those that hold [start, stop), the first at start // page_size. ranks: of the peer; 0: as many as here.
    """

    request_id: str
    peer: str
    slot: int
    pages: tuple[int, ...]
    start: int
    stop: int
    last: bool
    ranks: int = 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, in this order.

    commits: how far the rows verified in the step before stand; stores: copies to the host tier, of what lies on the
    device when the step begins; saves: states of sequences that ended or yield, before their slots are used anew;
    writes from the host tier to disk; drops of the host tier, and files to erase; transfers, installs, fetches and
    lends; copies: kept states and pages that sequences begin from; admits; rows together in one forward pass, those
    with drafts first; exports. ahead: rows that come before `rows`; the ranks then commit what they have verified by
    themselves, and `commits` is empty.
    """

    step: int
    ahead: Ahead | None = None
    commits: tuple[Commit, ...] = ()
    stores: tuple[Store, ...] = ()
    saves: tuple[Copy, ...] = ()
    writes: tuple[Write, ...] = ()
    drops: tuple[Drop, ...] = ()
    erases: tuple[Erase, ...] = ()
    links: tuple[LinkAll, ...] = ()
    unlinks: tuple[Unlink, ...] = ()
    discards: tuple[Discard, ...] = ()
    expects: tuple[Expect, ...] = ()
    fetches: tuple[Fetch, ...] = ()
    lends: tuple[Lend, ...] = ()
    installs: tuple[Install, ...] = ()
    copies: tuple[Copy, ...] = ()
    admits: tuple[Admit, ...] = ()
    rows: tuple[Row, ...] = ()
    exports: tuple[Export, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the plan has nothing to do."""
        return not any(
            (
                self.ahead, self.commits, self.saves, self.stores, self.writes, self.drops, self.erases, self.links,
                self.unlinks,
                self.discards, self.expects, self.fetches, self.lends, self.installs, self.copies, self.admits,
                self.rows,
                self.exports,
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepResult:
    """Rank 0's answer. One item a row with `sample`, in row order: the tokens it gained, one or more.

    logprobs: as many for each row, or none where not asked. prompt_logprobs: one list a row, those of its `next_ids`.
    failures: indices into `tokens` of sequences that can't go on under their own grammar, and why; what was sampled for
    them means nothing. stopped: indices of those whose last token is one of their stop tokens.
    """

    step: int
    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[TokenLogprob, ...], ...]
    prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...]
    elapsed_s: float
    failures: tuple[tuple[int, str], ...] = ()
    stopped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Compile:
    """Compile a grammar while steps run; rank 0 answers with `Compiled`."""

    grammar: Grammar


@dataclass(frozen=True, slots=True)
class Compiled:
    """The grammar is ready for an `Admit`, or `error` says why it can't be."""

    grammar: Grammar
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Forget:
    """Free a grammar that no sequence needs any more."""

    grammar: Grammar


@dataclass(frozen=True, slots=True)
class Loading:
    """A rank's progress in one stage of loading: bytes of its share of the weights."""

    rank: int
    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank has loaded its weights. pages: latent pages it has memory for. drafts: it has an MTP layer."""

    rank: int
    pid: int
    node: str
    device: str
    transfer_host: str
    transfer_port: int
    pages: int
    drafts: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """All of a snapshot's parts are in this rank's staging memory."""

    rank: int
    request_id: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """A snapshot in host memory or a file is damaged or missing.

    peer: the worker it was to be sent to; "" for none.
    """

    rank: int
    request_id: str
    reason: str
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """This rank has written its part of a snapshot to its file."""

    rank: int
    file: str


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """A snapshot could not be written to its file."""

    rank: int
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The last part of a snapshot has left this rank."""

    rank: int
    request_id: str


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The transfer link to `peer` broke; `request_ids` were under way on it.

    leaving: it is the link over which snapshots go to the peer, and may stand: the peer gave these up, or nobody asked
    for them. Else the link over which they come from it.
    """

    rank: int
    peer: str
    request_ids: tuple[str, ...]
    reason: str
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """Snapshot bytes that have come, or gone, and the seconds each link took over them, added up."""

    bytes: int
    seconds: float

    def plus(self, size: int, seconds: float) -> "Moved":
        """The totals with one more part."""
        return Moved(self.bytes + size, self.seconds + seconds)


@dataclass(frozen=True, slots=True)
class RankStats:
    """A rank's totals since its start, about once a second while it steps.

    phases: seconds of the measured steps by phase. expert_tokens: tokens times experts chosen in them, by the rank
    that holds the expert; expert_peaks: (layer, its busiest expert's share of the mean). Of rank 0 only, as all see
    the same. links: how many over which snapshots come stand, by channel.
    """

    rank: int
    phases: tuple[tuple[str, float], ...]
    sent: Moved
    received: Moved
    expert_tokens: tuple[int, ...] = ()
    expert_peaks: tuple[tuple[int, float], ...] = ()
    links: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ping:
    """The leader wants a sign of life; each rank answers with `Pong`, between two steps."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The rank lives."""

    rank: int


@dataclass(frozen=True, slots=True)
class Compiles:
    """The rank's step waits for a kernel's compilation."""

    rank: int


@dataclass(frozen=True, slots=True)
class RankFailed:
    """The rank raised and is ending; the worker ends with it."""

    rank: int
    reason: str


RankMessage = (
    StepPlan | StepResult | Compile | Compiled | Forget
    | Loading | Ready | Received | FetchFailed | Written | WriteFailed | Sent | LinkLost | RankStats | RankFailed
    | Ping | Pong | Compiles
)  # fmt: skip
RANKS: Codec[RankMessage] = Codec(get_args(RankMessage))
