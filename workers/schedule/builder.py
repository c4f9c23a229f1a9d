"""A step plan under construction: the rows decided so far, and the rest of the budget."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from workers.cache.moves import Copy, Drop, Erase, Fetch, Lend, Store, Write
from workers.schedule.batch import Batch
from workers.schedule.sequence import Sequence
from workers.schedule.step import Admit, Ahead, Commit, Discard, Expect, Export, Install, Row, StepPlan


@dataclass(frozen=True, slots=True)
class Size:
    """What a step computes. tokens: drafts among them; context: tokens before the computed ones, of all rows."""

    rows: int = 0
    tokens: int = 0
    context: int = 0

    def plus(self, rows: Iterable[Row]) -> "Size":
        """The size with these rows added."""
        sizes = [(row.count, row.start) for row in rows]
        if not sizes:
            return self
        tokens, context = map(sum, zip(*sizes, strict=True))
        return Size(self.rows + len(sizes), self.tokens + tokens, self.context + context)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A plan that the ranks run. owners: the sequence of each of its rows with its epoch when the step was planned.

    batch: the rows that go on from the step before, which come first; None if there are none, or if the plan was made
    ahead and the results of the step before are not known yet: `Scheduler.follow`. It is this step's until the next one
    follows. of_batch: what is computed of it.
    """

    plan: StepPlan
    owners: tuple[tuple[Sequence, int], ...]
    batch: Batch | None = None
    of_batch: Size = Size()

    @property
    def size(self) -> Size:
        """The number of tokens that the step computes, and their context."""
        return self.of_batch.plus(self.plan.rows)


class StepBuilder:
    """Builds one step.

    budget: tokens that may still be computed in it. reserve: returns a slot for the state of a sequence at a position,
    or None if it need not be kept. may_leave: whether parts of a sequence's snapshot may be sent to its peer yet.
    """

    def __init__(
        self,
        budget: int,
        page_size: int,
        reserve: Callable[[Sequence, int], int | None],
        may_leave: Callable[[Sequence], bool],
    ) -> None:
        self.budget = budget
        self._reserve = reserve
        self._may_leave = may_leave
        self._computing: list[tuple[Sequence, int]] = []
        self._page_size = page_size
        self._rows: list[Row] = []
        self._admits: list[Admit] = []
        self._expects: list[Expect] = []
        self._exports: list[Export] = []
        self._fetches: list[Fetch] = []
        self._copies: list[Copy] = []
        self._lends: list[Lend] = []

    def compute(self, seq: Sequence, drafts: int = 0) -> None:
        """Add a row with the sequence's next tokens, as many as are pending and fit.

        Parts of its snapshot that are then complete are exported.

        drafts: tokens to be drafted and verified after the only pending one.
        """
        count = min(self.budget, seq.pending)
        # Prompts of better priorities may have taken what was to be left for drafts.
        drafts = min(drafts, self.budget - count)
        self.budget -= count + drafts
        known, pages = len(seq.tokens), len(seq.pages)
        start, stop = seq.computed, seq.computed + count
        if not seq.admitted_on_ranks:
            history = tuple(seq.tokens) if seq.needs_history else ()
            generated = tuple(seq.tokens[seq.prompt_tokens :]) if seq.sampling.grammar is not None else ()
            self._admits.append(Admit(seq.slot, seq.sampling, history, seq.prompt_tokens, generated))
            seq.admitted_on_ranks = True
        next_ids: tuple[int, ...] = ()
        if seq.sampling.prompt_logprobs is not None and seq.generated == 0:
            next_ids = tuple(seq.tokens[start + 1 : min(stop + 1, seq.prompt_tokens)])
        self._rows.append(
            Row(
                slot=seq.slot,
                start=start,
                token_ids=(seq.tokens[start],) if count == 1 else tuple(seq.tokens[start:stop]),
                page_offset=seq.pages_on_ranks,
                new_pages=tuple(seq.pages[seq.pages_on_ranks :]) if seq.pages_on_ranks < pages else (),
                sample=stop == known,
                next_ids=next_ids,
                keeps=self._keeps(seq, start, stop) if seq.keeps else (),
                drafts=drafts,
                follows=seq.tokens[stop] if stop < known else -1,
            )
        )
        seq.pages_on_ranks = pages
        self._computing.append((seq, seq.epoch))
        # Tokens that are computed again after a preemption may have been sent already.
        if seq.handoff and stop > seq.exported and self._may_leave(seq):
            self.export(seq, stop)

    def expect(self, seq: Sequence) -> None:
        """Pull the sequence's snapshot, without the latents that are here already."""
        assert seq.source is not None
        self._expects.append(Expect(seq.request_id, seq.source.peer, seq.source.position, seq.have))

    def fetch(self, seq: Sequence, keys: tuple[int, ...], files: tuple[str, ...]) -> None:
        """Fetch the sequence's snapshot from host memory or files, without latents that are already on the device."""
        assert seq.fetching is not None
        self._fetches.append(Fetch(seq.request_id, keys, seq.have, seq.fetching.position, files))

    def copy(self, copy: Copy) -> None:
        """Copy a kept state, and the page in which its prefix ends, to a sequence's own slot and page."""
        self._copies.append(copy)

    def send_kept(self, export: Export) -> None:
        """Send a kept snapshot to a peer."""
        self._exports.append(export)

    def lend(self, lend: Lend) -> None:
        """Send a kept snapshot to a peer from host memory."""
        self._lends.append(lend)

    def export(self, seq: Sequence, stop: int) -> None:
        """Send latents up to `stop`, and with the prompt's last ones the linear state."""
        assert seq.peer is not None
        size = self._page_size
        pages = tuple(seq.pages[seq.exported // size : -(-stop // size)])
        last = stop == seq.prompt_tokens
        self._exports.append(
            Export(seq.request_id, seq.peer, seq.slot, pages, seq.exported, stop, last, seq.peer_ranks)
        )
        seq.exported = stop

    def plan(
        self,
        step: int,
        commits: tuple[Commit, ...],
        saves: list[Copy],
        host: tuple[tuple[Store, ...], tuple[Drop, ...]],
        disk: tuple[tuple[Write, ...], tuple[Erase, ...]],
        discards: list[Discard],
        installs: list[Install],
        ahead: Ahead | None = None,
    ) -> InFlight:
        """Return the finished plan."""
        # Rows with drafts first, as ranks take them.
        order = sorted(range(len(self._rows)), key=lambda at: not self._rows[at].drafts)
        plan = StepPlan(
            step=step,
            ahead=ahead,
            commits=commits,
            saves=tuple(saves),
            stores=host[0],
            drops=host[1],
            writes=disk[0],
            erases=disk[1],
            discards=tuple(discards),
            expects=tuple(self._expects),
            fetches=tuple(self._fetches),
            lends=tuple(self._lends),
            installs=tuple(installs),
            copies=tuple(self._copies),
            admits=tuple(self._admits),
            rows=tuple(self._rows[at] for at in order),
            exports=tuple(self._exports),
        )
        return InFlight(plan, tuple(self._computing[at] for at in order))

    def _keeps(self, seq: Sequence, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """Reserve slots for the row's states that are to be kept."""
        slots = [(p - start, self._reserve(seq, p)) for p in seq.keeps if start < p <= stop]
        return tuple((count, slot) for count, slot in slots if slot is not None)
