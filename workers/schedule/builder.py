"""A step plan while it is being decided: what has been given to whom so far, and what is left of the budget."""

from workers.schedule.sequence import Sequence
from workers.schedule.step import Admit, Discard, Expect, Export, Install, Row, StepPlan


class StepBuilder:
    """One step's rows and what goes with them. `budget`: tokens that may still be computed in it."""

    def __init__(self, budget: int, page_size: int) -> None:
        self.budget = budget
        self.computing: list[Sequence] = []  # one a row
        self._page_size = page_size
        self._rows: list[Row] = []
        self._admits: list[Admit] = []
        self._expects: list[Expect] = []
        self._exports: list[Export] = []

    def compute(self, seq: Sequence) -> None:
        """The sequence's next tokens, as many as are pending and fit; what of its snapshot is due leaves after them."""
        count = min(self.budget, seq.pending)
        self.budget -= count
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
                token_ids=tuple(seq.tokens[start:stop]),
                page_offset=seq.pages_on_ranks,
                new_pages=tuple(seq.pages[seq.pages_on_ranks :]),
                sample=stop == len(seq.tokens),
                next_ids=next_ids,
            )
        )
        seq.pages_on_ranks = len(seq.pages)
        self.computing.append(seq)
        # What is computed a second time, after a preemption, may have left already.
        if seq.handoff and seq.peer is not None and stop > seq.exported:
            self.export(seq, stop)

    def expect(self, seq: Sequence) -> None:
        """Its snapshot is to be pulled."""
        assert seq.source is not None
        self._expects.append(Expect(seq.request_id, seq.source, seq.prompt_tokens))

    def export(self, seq: Sequence, stop: int) -> None:
        """Latents up to `stop` leave, and with the prompt's last the linear state."""
        assert seq.peer is not None
        size = self._page_size
        pages = tuple(seq.pages[seq.exported // size : -(-stop // size)])
        last = stop == seq.prompt_tokens
        self._exports.append(Export(seq.request_id, seq.peer, seq.slot, pages, seq.exported, stop, last))
        seq.exported = stop

    def plan(self, step: int, discards: list[Discard], installs: list[Install]) -> StepPlan:
        """The step as decided."""
        return StepPlan(
            step=step,
            discards=tuple(discards),
            expects=tuple(self._expects),
            installs=tuple(installs),
            admits=tuple(self._admits),
            rows=tuple(self._rows),
            exports=tuple(self._exports),
        )
