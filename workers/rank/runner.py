"""Executes step plans on one rank: the forward pass, drafts, and sampling on rank 0.

With captured steps the host runs ahead of the device: it launches a decode step that was planned ahead before it has
read the tokens of the step before. The device takes these tokens from its own memory, and the host reads them while the
new step runs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from kernels import Keep, Rows, make_rows
from wire.protocol import TokenLogprob
from workers.collectives.base import Collectives
from workers.model.batch import Batch, Caches
from workers.model.ling import LingModel
from workers.rank.drafter import Drafter
from workers.rank.expert_load import ExpertLoad
from workers.rank.grammar import Grammars
from workers.rank.graphs import Capture, DecodeGraphs
from workers.rank.host_store import HostStore
from workers.rank.latest import NOTHING, Fed, Latest
from workers.rank.sampler import Drawing, Run, Sampled, Sampler, token_logprobs
from workers.rank.snapshots import Snapshots
from workers.rank.watch import StepWatch
from workers.schedule.ahead import outcomes
from workers.schedule.step import Commit, Moved, RankStats, Row, StepPlan, StepResult
from workers.transfer.endpoint import Transfers

# Prompt log-probabilities need logits of every prompt token; this many rows of vocabulary at a time.
_LOGIT_ROWS = 128
# Captured steps do not count experts, so one of this many steps runs uncaptured on all ranks and counts them.
_COUNT_EVERY = 512

Tell = Callable[[StepResult], None]


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step whose result is not told yet. drawing: of the rows that sample; None where there are none, and on ranks
    but 0."""

    step: int
    drawing: Drawing | None
    prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...]
    begun: float
    tell: Tell


class Runner:
    """One rank's model, caches and sampler. `transfers` is None where no snapshot comes or goes.

    slots: states of running sequences; the one after them is left to captured steps, as is the last page, and those
    behind it are kept states. host: the host tier. capture: decode steps are captured by it; None for none. drafts:
    of a sequence in a step at most.
    """

    def __init__(
        self,
        model: LingModel,
        caches: Caches,
        collectives: Collectives,
        max_pages: int,
        transfers: Transfers | None,
        grammars: Grammars,
        slots: int,
        host: HostStore,
        capture: Capture | None = None,
        drafts: int = 0,
    ) -> None:
        self._model = model
        self._caches = caches
        self._collectives = collectives
        self._transfers = transfers
        self._snapshots = Snapshots(caches, collectives, transfers, host)
        self._device = caches.latent.device
        self._page_table = torch.zeros(slots + 1, max_pages, dtype=torch.int32, device=self._device)
        self._sampler = Sampler(model.config.vocab_size, slots, self._device, grammars)
        self._latest = Latest(collectives, self._device)
        self._watch = StepWatch(self._device)
        self._experts = ExpertLoad(model.config, collectives.size, self._device)
        self._drafter = Drafter(model, caches, self._page_table) if model.config.drafts else None
        self._under_way: _UnderWay | None = None
        self._finished = 0.0
        # Slots of sequences whose drafts are sampled one by one.
        self._apart: set[int] = set()
        self._verified: tuple[Rows, tuple[int, ...]] | None = None  # the latest verified rows, and the slot of each
        self._graphs: DecodeGraphs | None = None
        if capture is not None:
            with torch.inference_mode():
                self._graphs = DecodeGraphs(model, caches, self._page_table, capture, drafts)

    @torch.inference_mode()
    def start(self, plan: StepPlan, tell: Tell) -> None:
        """Start one plan. `tell` gets its result in `finish`, or while a later plan starts.

        Every rank starts the same plans in the same order; only rank 0's results are valid.
        """
        begun = time.monotonic()
        fed = self._fed(plan) if plan.ahead is not None else None
        if fed is not None:
            plan = replace(plan, rows=fed.rows)
        else:
            self.finish()
            if plan.ahead is not None:
                rows, commits = self._latest.go_on(plan.ahead, plan.rows)
                plan = replace(plan, rows=rows, commits=commits)
        graphs = self._graphs if self._graphs is not None and self._graphs.serves(plan.rows) else None
        uncaptured = graphs is not None and plan.step % _COUNT_EVERY == 0
        if uncaptured:
            graphs = None
        # An uncaptured decode step takes another time than captured ones, so it is not measured.
        watched = bool(plan.rows) and not uncaptured and self._watch.begin(begun)
        counting = (uncaptured or (watched and graphs is None)) and self._collectives.rank == 0
        self._before(plan, fed)
        self._watch.lap("transfer")
        drawing: Drawing | None = None
        prompt_logprobs: list[tuple[TokenLogprob, ...]] = []
        if plan.rows:
            if counting:
                self._model.count_experts(self._experts.counts)
            drawing, prompt_logprobs = self._compute(plan, graphs, fed)
        else:
            self._latest.took((), frozenset(), None, feeds=False)
        self._snapshots.after(plan)
        self._watch.lap("transfer")
        if counting:
            self._model.count_experts(None)
            self._experts.settle()
        self._under_way = _UnderWay(plan.step, drawing, tuple(prompt_logprobs), begun, tell)

    @property
    def ready(self) -> bool:
        """Whether `finish` would return without waiting for the device."""
        return self._under_way is None or self._under_way.drawing is None or self._under_way.drawing.ready

    @property
    def runs_ahead(self) -> bool:
        """Whether the next plan, if it was planned ahead, is best started before `finish`."""
        return self._latest.feeds

    @torch.inference_mode()
    def finish(self) -> None:
        """Pass the result of the plan started last to its `tell`; does nothing if that was done."""
        done, self._under_way = self._under_way, None
        if done is None:
            return
        sampled = self._sampler.read(done.drawing) if done.drawing is not None else Sampled([], [], {}, [])
        now = time.monotonic()
        result = StepResult(
            step=done.step,
            tokens=tuple(map(tuple, sampled.tokens)),
            logprobs=tuple(map(tuple, sampled.logprobs)),
            prompt_logprobs=done.prompt_logprobs,
            elapsed_s=now - max(done.begun, self._finished),
            failures=tuple(sampled.failures.items()),
            stopped=tuple(sampled.stopped),
        )
        self._finished = now
        if self._collectives.rank == 0:
            self._latest.came_of(outcomes(result))
        done.tell(result)

    def _fed(self, plan: StepPlan) -> Fed | None:
        """The rows of a step planned ahead, if the device can take their tokens from the step before; else None.

        The decision depends only on plans, so all ranks make the same one, whichever tokens their hosts have read.
        """
        if not self._latest.feeds or plan.step % _COUNT_EVERY == 0:
            return None
        assert plan.ahead is not None
        assert self._graphs is not None
        rows = self._latest.rows_fed(plan.ahead, plan.rows)
        return self._latest.feed(rows) if self._graphs.serves(rows) else None

    def _compute(
        self, plan: StepPlan, graphs: DecodeGraphs | None, fed: Fed | None
    ) -> tuple[Drawing | None, list[tuple[TokenLogprob, ...]]]:
        """Compute the rows: returns what is sampled, and the log-probabilities of prompts."""
        for admit in plan.admits:
            if self._drafter is not None:
                self._drafter.admit(admit.slot)
            if self._collectives.rank == 0:
                self._sampler.admit(admit)
            if admit.token_ids or admit.sampling.grammar is not None:
                self._apart.add(admit.slot)
            else:
                self._apart.discard(admit.slot)
        rows = plan.rows
        self._turn_pages(rows)
        drafts = self._draft(rows, fed)
        self._watch.lap("draft")
        ids = self._ids(rows, drafts) if fed is None else _fed_ids(fed, drafts)
        if graphs is not None:
            hidden = graphs(rows, ids, None if fed is None else fed.places)
        else:
            hidden = self._model.forward(self._batch(rows, ids), self._caches)
        self._watch.launched()
        if self._drafter is not None:
            self._drafter.take(rows, ids, hidden)
        self._watch.lap("forward")
        logits = self._model.logits(self._sampled_of(rows, hidden)) if any(r.sample for r in rows) else None
        over: frozenset[int] = frozenset()
        if fed is not None:
            # The device is computing the step, so it loses nothing while the host waits here.
            rows, over = self._latest.settle(rows)
            self.finish()
        self._verified = self._verified_of(rows, over)
        # If drafts are sampled one by one, the device does not know how many are accepted.
        together = drafts is None or self._apart.isdisjoint(row.slot for row in rows)
        feeds = graphs is not None and together and len(over) < len(rows)
        drawing = came = None
        if logits is not None and self._collectives.rank == 0:
            drawing, came = self._drawing(rows, logits, drafts, over, feeds=feeds)
        self._latest.took(rows, over, came, feeds=feeds)
        prompt_logprobs = self._prompt_logprobs(rows, hidden) if any(r.next_ids for r in rows) else []
        self._watch.lap("sample")
        return drawing, prompt_logprobs

    def _drawing(
        self, rows: tuple[Row, ...], logits: Tensor, drafts: Tensor | None, over: frozenset[int], *, feeds: bool
    ) -> tuple[Drawing | None, Tensor | None]:
        """Sample tokens for the rows that have not ended; returns them, and the outcomes that feed the next step."""
        runs = [Run(r.slot, r.start + len(r.token_ids), r.drafts) for r in rows if r.sample]
        if not over:
            drawing = self._sampler.draw(logits, runs, drafts, outcomes=feeds)
            return drawing, drawing.came
        if len(over) == len(runs):
            return None, None
        live = [at for at in range(len(runs)) if at not in over]
        at = self._integers(live)
        some = logits.view(len(runs), -1, logits.shape[-1])[at].flatten(0, 1)
        drawing = self._sampler.draw(
            some, [runs[n] for n in live], None if drafts is None else drafts[at], outcomes=feeds
        )
        if drawing.came is None:
            return drawing, None
        came = self._integers([NOTHING] * len(runs))
        came[at] = drawing.came
        return drawing, came

    def stats(self) -> RankStats | None:
        """This rank's totals; None unless the latest step was a measured one."""
        if not self._watch.on:
            return None
        self._watch.on = False
        none = Moved(0, 0.0)
        sent, received = (self._transfers.sent, self._transfers.received) if self._transfers else (none, none)
        links = self._transfers.channels if self._transfers else {}
        rank, phases = self._collectives.rank, self._watch.phases
        if rank:
            return RankStats(rank, phases, sent, received, links=links)
        return RankStats(rank, phases, sent, received, self._experts.by_rank, self._experts.peaks, links)

    def _before(self, plan: StepPlan, fed: Fed | None) -> None:
        self._commit(plan.commits, fed)
        self._snapshots.before(plan)

    def _commit(self, commits: tuple[Commit, ...], fed: Fed | None) -> None:
        """Advance the linear states of the rows verified last by their accepted tokens.

        Only the device knows their number in a step that it feeds. Otherwise `commits` has it, without the sequences
        that are gone.
        """
        if self._verified is None or self._drafter is None:
            return
        (rows, slots), self._verified = self._verified, None
        if fed is not None:
            self._model.commit(rows, fed.came[:, 0], self._caches)
        elif commits:
            self._drafter.commit(commits)
            accepted = {commit.slot: commit.tokens for commit in commits}
            self._model.commit(rows, self._integers([accepted.get(slot, 0) for slot in slots]), self._caches)

    def _draft(self, rows: tuple[Row, ...], fed: Fed | None) -> Tensor | None:
        """Make the drafts of the rows that have some, which are the first: [rows, most drafts]."""
        drafted = [r for r in rows if r.drafts]
        if fed is not None and drafted and self._drafter is not None:
            return self._drafter.feed(self._latest.before, fed)
        return self._drafter.draft(drafted) if drafted and self._drafter is not None else None

    def _ids(self, rows: tuple[Row, ...], drafts: Tensor | None) -> Tensor:
        """All rows' tokens [T], with drafts after each row's own."""
        ids = self._integers([t for r in rows for t in (*r.token_ids, *[0] * r.drafts)])
        if drafts is not None:
            begins = list(accumulate((r.count for r in rows), initial=0))
            places = [(begins[at] + 1 + n, at, n) for at, r in enumerate(rows) for n in range(r.drafts)]
            into, at, n = self._integers(places).unbind(1)
            ids[into] = drafts[at, n]
        return ids

    def _turn_pages(self, rows: tuple[Row, ...]) -> None:
        """Write rows' new pages into the page table."""
        new = [(row.slot, row.page_offset + i, page) for row in rows for i, page in enumerate(row.new_pages)]
        if new:
            slots, places, pages = self._integers(new).unbind(1)
            self._page_table[slots, places] = pages.int()

    def _batch(self, rows: tuple[Row, ...], ids: Tensor) -> Batch:
        return Batch(
            token_ids=ids,
            positions=self._integers([p for r in rows for p in range(r.start, r.start + r.count)]),
            slots=self._integers([r.slot for r in rows]),
            starts=tuple(r.start for r in rows),
            counts=tuple(r.count for r in rows),
            page_table=self._page_table,
            keeps=tuple(Keep(at, count, slot) for at, r in enumerate(rows) for count, slot in r.keeps),
            verified=sum(r.drafts > 0 for r in rows),
        )

    def _verified_of(self, rows: tuple[Row, ...], over: frozenset[int]) -> tuple[Rows, tuple[int, ...]] | None:
        """The rows with drafts and their slots, for the commit to come. Those that are `over` were padding."""
        drafted = [r for r in rows if r.drafts]
        if not drafted:
            return None
        padding = self._page_table.shape[0] - 1
        slots = tuple(padding if at in over else r.slot for at, r in enumerate(drafted))
        positions = self._integers([p for r in drafted for p in range(r.start, r.start + r.count)])
        starts, counts = tuple(r.start for r in drafted), tuple(r.count for r in drafted)
        return make_rows(self._integers(slots), positions, starts, counts), slots

    def _sampled_of(self, rows: tuple[Row, ...], hidden: Tensor) -> Tensor:
        """The hidden states after which tokens are sampled: those of a row's last token and of tokens before drafts."""
        wanted: list[int] = []
        end = 0
        for row in rows:
            end += row.count
            if row.sample:
                wanted += range(end - 1 - row.drafts, end)
        return hidden if len(wanted) == len(hidden) else hidden[self._integers(wanted)]

    def _integers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """A device copy of integers, without waiting for the device's earlier work."""
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)

    def _prompt_logprobs(self, rows: tuple[Row, ...], hidden: Tensor) -> list[tuple[TokenLogprob, ...]]:
        out: list[tuple[TokenLogprob, ...]] = []
        first = 0
        for row in rows:
            wanted: list[TokenLogprob] = []
            for at in range(0, len(row.next_ids), _LOGIT_ROWS):
                ids = list(row.next_ids[at : at + _LOGIT_ROWS])
                logits = self._model.logits(hidden[first + at : first + at + len(ids)])
                if self._collectives.rank == 0:
                    wanted += token_logprobs(logits, ids, [self._sampler.prompt_top(row.slot)] * len(ids))
            out.append(tuple(wanted))
            first += row.count
        return out


def _fed_ids(fed: Fed, drafts: Tensor | None) -> Tensor:
    """The tokens [T] of a fed step: each row's own token and its drafts."""
    return fed.tokens if drafts is None else torch.cat((fed.tokens[:, None], drafts), 1).flatten()
