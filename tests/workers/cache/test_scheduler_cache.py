"""The scheduler with its prefix cache, over random lives of a worker, against a memory that knows what lies where."""

import itertools
import random
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.workers.cache.model import Memory
from wire.digest import PageDigests
from wire.protocol import Mark, SamplingParams, SeqOutput
from workers.cache.budget import Budget
from workers.cache.disk import Place
from workers.cache.disk_folder import Left
from workers.cache.index import Tokens
from workers.schedule.ahead import outcomes, rows_ahead
from workers.schedule.builder import InFlight
from workers.schedule.keeping import PullError
from workers.schedule.limits import Limits, Staging
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence, Source, State
from workers.schedule.step import Commit, Row, StepPlan, StepResult

SIZE = 4
STOPS = (111, 118, 129)


def limits(states: int = 3, host_bytes: int = 0, pages: int = 24, disk_bytes: int = 0, drafts: int = 0) -> Limits:
    budget = Budget(states, host_bytes, state_bytes=10, token_bytes=1, disk_bytes=disk_bytes, disk_ttl_s=100.0)
    return Limits(
        pages=pages, page_size=SIZE, slots=4, max_model_len=40, max_step_tokens=8, window=2, hold_s=5.0, cache=budget,
        staging=Staging(budget=50, state=10, token=1), drafts=drafts, adapts=False, answer_tokens=5,
    )  # fmt: skip


def cut(ids: tuple[int, ...]) -> tuple[int, ...]:
    """A run up to its first stop token."""
    ends = [n for n, token in enumerate(ids, 1) if token in STOPS]
    return ids[: ends[0]] if ends else ids


class Worker:
    """A scheduler, and what its ranks would hold. ahead: many a step is planned while the one before runs."""

    def __init__(self, of: Limits, ahead: bool = False) -> None:
        self.ahead = ahead
        self.next: InFlight | None = None
        self.planned_ahead = 0
        self.sampled: tuple[list[Row], StepResult] = [], StepResult(0, (), (), (), 0.0)  # of the latest step
        self.scheduler = Scheduler(of)
        if of.cache.disk_bytes:
            self.scheduler.cache.open_disk(Place("/disk", "w", "l", "float32"), Left((), (), 0), 0.0)
        self.memory = Memory(SIZE)
        self.luck = random.Random(7)
        self.made = 0
        self.begun: dict[str, tuple[int, str | None]] = {}
        self.answers: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}

    def add(
        self,
        ids: list[int],
        new: int = 3,
        priority: int = 0,
        handoff: bool = False,
        source: Source | None = None,
        boundaries: tuple[int, ...] = (),
        scope: str = "",
        foreign: int = 0,
        rewritten: int = 0,
    ) -> str:
        name = f"r{self.made}"
        self.made += 1
        self.scheduler.add(
            Sequence(
                request_id=name, tokens=list(ids), prompt_tokens=len(ids),
                sampling=SamplingParams(max_tokens=new, seed=0, stop_token_ids=STOPS if self.ahead else ()),
                priority=priority, behind=self.made % 3 == 0, order=0, handoff=handoff,
                source=source, arrived=0.0, boundaries=boundaries, scope=scope,
                foreign=foreign, rewritten=rewritten,
            )
        )  # fmt: skip
        return name

    def step(self, now: float = 0.0, between: "list[str] | None" = None) -> StepPlan:
        flight, self.next = self.next or self.scheduler.plan(now), None
        plan = self.as_ranks_run(flight.plan)
        going = flight.batch.slots if flight.batch else []
        assert [*going, *(r.slot for r in flight.plan.rows)] == [r.slot for r in plan.rows]
        assert flight.size.tokens == sum(r.count for r in plan.rows)
        ahead = self.scheduler.plan_ahead(flight, now) if self.ahead and self.luck.random() < 0.8 else None
        # The right token at a position is 100 more than that; a wrong draft is -9.
        stand = [self.luck.randint(0, r.drafts) for r in plan.rows]
        right = [[101 + r.start + n for n in range(s)] for r, s in zip(plan.rows, stand, strict=True)]
        drafts = {r.slot: (*ids, *[-9] * (r.drafts - len(ids))) for r, ids in zip(plan.rows, right, strict=True)}
        self.memory.run(plan, drafts)
        for name in between or []:
            self.scheduler.remove(name)
        tokens = tuple(
            (*ids, 100 + r.start + len(r.token_ids) + len(ids))
            for r, ids in zip(plan.rows, right, strict=True)
            if r.sample
        )
        if self.ahead:
            tokens = tuple(cut(ids) for ids in tokens)
        stopped = tuple(at for at, ids in enumerate(tokens) if self.ahead and ids[-1] in STOPS)
        result = StepResult(plan.step, tokens, ((),) * len(tokens), (), 0.001, stopped=stopped)
        self.sampled = [r for r in plan.rows if r.sample], result
        for output in self.scheduler.update(flight, result, now):
            self.take(output)
        if ahead is not None:
            self.planned_ahead += 1
            self.next = self.scheduler.follow(ahead, flight, result)
        self.check()
        return plan

    def as_ranks_run(self, plan: StepPlan) -> StepPlan:
        """A plan with the rows that go on from the step before, and what stands of those that it verified."""
        if plan.ahead is None:
            return plan
        before, result = self.sampled
        rows = rows_ahead(before, outcomes(result), plan.ahead, plan.rows)
        stood = tuple(Commit(r.slot, len(t)) for r, t in zip(before, result.tokens, strict=True) if r.drafts)
        return replace(plan, ahead=None, rows=tuple(rows), commits=stood)

    def take(self, output: SeqOutput) -> None:
        if output.token_ids and output.offset == 0:
            self.begun[output.request_id] = (output.cached_tokens, output.cached_from)
        self.answers.setdefault(output.request_id, []).extend(output.token_ids)
        if output.finish:
            assert output.request_id not in self.ended
            self.ended[output.request_id] = output.finish

    def finish(self, now: float = 0.0) -> None:
        """Run all sequences to their ends."""
        for _ in range(500):
            self.arrive(now)
            if self.step(now).empty and not self.scheduler.sequences:
                return
        raise AssertionError("sequences never end")

    def arrive(self, now: float = 0.0) -> None:
        """Let the snapshots on their way from host memory and peers arrive."""
        for seq in [s for s in self.scheduler.sequences.values() if s.state in (State.PULLING, State.DISPLACED)]:
            if seq.source is not None:
                ids, position = tuple(seq.tokens), seq.source.position
                self.memory.pulled[seq.request_id] = (seq.have, ids[seq.have : position], ids[:position])
                self.scheduler.install(seq.request_id, () if seq.source.kept else (77,), now)
            elif seq.request_id in self.memory.fetched:
                self.scheduler.install(seq.request_id, (), now)

    def check(self) -> None:
        """References add up: a page has one for each sequence and each kept snapshot that lies in it."""
        scheduler, cache = self.scheduler, self.scheduler.cache
        refs: dict[int, int] = {}
        for pages in (*(s.pages for s in scheduler.sequences.values()), *(k.pages for k in cache.index)):
            for page in pages:
                refs[page] = refs.get(page, 0) + 1
        assert all(scheduler.pages.refs(p) == refs.get(p, 0) for p in range(scheduler.limits.pages))
        assert scheduler.pages.free == scheduler.limits.pages - len(refs)
        kept = {p for k in cache.index for p in k.pages}
        used = {p for s in scheduler.sequences.values() for p in s.pages}
        assert scheduler.pages.reclaimable == len(kept - used)
        slots = [k.slot for k in cache.index if k.slot >= 0]
        assert len(set(slots)) == len(slots)
        # A step that is under way writes states that are kept once its results are known.
        due = self.as_ranks_run(self.next.plan) if self.next else StepPlan(0)
        written = [slot for row in due.rows for _, slot in row.keeps]
        assert cache.slots.free == cache.slots.size - len(slots) - len(written)
        assert all(k.slot >= 0 or k in cache.host or k in cache.disk for k in cache.index)
        assert cache.disk.bytes <= cache.budget.disk_bytes
        assert all((k.slot >= 0) == bool(k.pages) for k in cache.index)
        assert cache.host.bytes <= cache.budget.host_bytes
        load, states = scheduler.load, [s.state for s in scheduler.sequences.values()]
        running = [s for s in scheduler.sequences.values() if s.state is State.RUNNING]
        prompts = [s for s in running if s.pending > 1]
        waiting = [s for s in scheduler.sequences.values() if s.state in (State.QUEUED, State.DISPLACED)]
        computed_here = [s for s in waiting if s.source is None]
        assert load.transferring == sum(s in (State.PULLING, State.SENDING) for s in states)
        assert (load.queued, load.running) == (len(waiting), len(running))
        assert load.answering == sum(not s.handoff for s in running)
        assert load.queued_tokens == sum(s.pending for s in (*computed_here, *prompts))
        assert load.behind == sum(s.behind for s in (*waiting, *prompts))
        leaving = [s.prompt_tokens for s in scheduler.sequences.values() if s.leaves]
        staged = [10 + tokens for tokens in (*leaving, *scheduler.keeping.lending.leaving)]
        assert sum(staged) <= 50 or len(staged) == 1
        for k in cache.index:  # what the index promises is what the memory holds
            if (
                k.slot >= 0
                and k.slot in self.memory.states
                and not any(c.to_slot == k.slot for c in (*scheduler.keeping.saves, *due.saves, *due.copies))
            ):
                state = self.memory.states[k.slot]
                assert len(state) == k.position
                assert state == self.memory.read(k.pages, 0, k.position)


def turn(worker: Worker, ids: list[int], new: int = 3, **more: object) -> tuple[list[int], tuple[int, str | None]]:
    name = worker.add(ids, new, **more)  # type: ignore[arg-type]
    worker.finish()
    return worker.answers[name], worker.begun[name]


def test_the_next_turn_computes_its_new_tokens_only() -> None:
    worker = Worker(limits())
    first = list(range(10))
    answer, begun = turn(worker, first)
    assert begun == (0, None)
    # The answer's last token was sampled and never computed.
    second = [*first, *answer, 50, 51, 52]
    _, begun = turn(worker, second)
    assert begun == (12, "device")


def test_a_repeated_prompt_computes_one_token() -> None:
    worker = Worker(limits())
    prompt = list(range(11))
    assert turn(worker, prompt)[1] == (0, None)
    assert turn(worker, prompt)[1] == (10, "device")


def test_sequences_that_begin_alike_at_once_compute_the_common_part_once() -> None:
    worker = Worker(limits())
    names = [worker.add(list(range(11))) for _ in range(4)]
    computed = 0
    while worker.scheduler.sequences:
        computed += sum(len(r.token_ids) for r in worker.step().rows if r.start < 11)
    assert computed == 11 + 3
    assert [worker.begun[n] for n in names] == [(0, None), *[(10, "device")] * 3]


def test_a_branch_is_kept_once_a_second_continuation_was_seen() -> None:
    worker = Worker(limits(states=6))
    common = list(range(9))
    begun = [turn(worker, [*common, *tail], new=1)[1][0] for tail in ([70, 71, 72], [80, 81, 82], [90, 91, 92])]
    assert begun == [0, 0, 8]
    totals = worker.scheduler.cache.totals
    assert (totals.misses["new"], totals.misses["no_state"]) == (2, 1)


@pytest.mark.parametrize(
    ("more", "missed"),
    [
        ({}, "new"),
        ({"foreign": 9}, "weights"),
        ({"rewritten": 9}, "template"),
        ({"foreign": 12, "rewritten": 16}, "template"),
        ({"foreign": 16, "rewritten": 16}, "weights"),
        # What was computed here explains more of it, or as much.
        ({"foreign": 9, "rewritten": 6, "computed": 12}, "no_state"),
        ({"foreign": 15, "computed": 12}, "no_state"),
        ({"foreign": 16, "computed": 12}, "weights"),
        ({"foreign": 9, "rewritten": 9, "kept": 9}, "new"),
        ({"rewritten": 10, "kept": 9}, "template"),
    ],
)
def test_a_miss_has_the_reason_that_would_have_saved_most_tokens(more: dict[str, int], missed: str) -> None:
    worker = Worker(limits(states=6))
    computed, kept = more.pop("computed", 0), more.pop("kept", 0)
    prompt = list(range(18))
    if computed:
        turn(worker, [*prompt[:computed], 99, 99], new=1)
        worker.scheduler.cache.clear()
        worker.scheduler.cache.index._evicted.clear()
    if kept:
        turn(worker, prompt[:kept], new=1)
    totals = worker.scheduler.cache.totals
    before = dict(totals.misses)
    assert turn(worker, prompt, new=1, **more)[1][0] == kept
    assert {why for why, count in totals.misses.items() if count != before[why]} == {missed}
    assert sum(totals.misses.values()) == sum(before.values()) + 1
    load = worker.scheduler.load
    assert (load.hits, sum(load.misses)) == (sum(totals.hits.values()), sum(totals.misses.values()))
    assert load.hit_tokens + load.missed_tokens == 18 + bool(computed) * (computed + 2) + kept


def test_the_end_of_the_system_prompt_is_kept() -> None:
    worker = Worker(limits(states=6))
    system = list(range(6))
    turn(worker, [*system, 60, 61, 62], new=1, boundaries=(6, 8))
    assert turn(worker, [*system, 70, 71, 72], new=1, boundaries=(6, 8))[1] == (6, "device")


def test_scopes_share_nothing() -> None:
    worker = Worker(limits())
    assert turn(worker, list(range(10)), scope="a")[1] == (0, None)
    assert turn(worker, list(range(10)), scope="b")[1] == (0, None)
    assert turn(worker, list(range(10)), scope="a")[1] == (9, "device")


def test_prompt_logprobs_need_the_whole_prompt() -> None:
    worker = Worker(limits())
    turn(worker, list(range(10)))
    name = worker.add(list(range(10)))
    worker.scheduler.sequences[name].sampling = SamplingParams(max_tokens=1, seed=0, prompt_logprobs=1)
    plan = worker.step()
    assert [r.start for r in plan.rows] == [0]


def test_a_snapshot_evicted_from_the_device_comes_back_from_the_host() -> None:
    worker = Worker(limits(states=1, host_bytes=10_000))
    first = list(range(10))
    turn(worker, first, new=1)
    turn(worker, list(range(20, 32)), new=1)
    assert turn(worker, first, new=1)[1] == (9, "host")


def test_all_that_ends_in_a_step_reaches_the_host_through_one_place_on_the_device() -> None:
    worker = Worker(limits(states=1, host_bytes=10_000))
    prompts = [[n * 10 + i for i in range(2)] for n in range(3)]
    names = [worker.add(ids, new=2) for ids in prompts]
    worker.finish()
    ends = [[*ids, *worker.answers[name]] for ids, name in zip(prompts, names, strict=True)]
    for ids in reversed(ends):
        assert turn(worker, [*ids, 5, 6], new=1)[1] in ((3, "host"), (3, "device"))


def test_drafts_get_what_prompts_of_better_priorities_leave_of_a_step() -> None:
    worker = Worker(limits(drafts=1))
    for first in (0, 50, 100):
        worker.add(list(range(first, first + 3)), 9, priority=5)
    while not all(seq.generated for seq in worker.scheduler.sequences.values()):
        worker.step()
    worker.add(list(range(200, 205)), priority=0)
    rows = worker.step().rows
    assert sorted(len(row.token_ids) for row in rows) == [1, 1, 5]
    assert sum(row.count for row in rows) == 8


def test_a_sequence_that_needs_every_page_begins_at_zero_where_its_snapshot_holds_one_beside_its_own() -> None:
    worker = Worker(limits(pages=10))
    answer, _ = turn(worker, list(range(22)))
    ids = [*range(22), *answer, *range(100, 111)]
    assert len(ids) == 36
    # Ten pages, and the one in which its snapshot of 24 tokens would end if that were not a page's end.
    assert turn(worker, ids)[1][0] == 24
    worker = Worker(limits(pages=10))
    answer, _ = turn(worker, list(range(23)))
    assert turn(worker, [*range(23), *answer, *range(100, 110)])[1] == (0, None)


def test_a_snapshot_that_another_continues_is_evicted_for_the_pages_that_are_its_own() -> None:
    worker = Worker(limits(states=3, pages=14))
    pages = worker.scheduler.pages
    cache = worker.scheduler.cache
    ids = list(range(30))
    digests = PageDigests(SIZE, "")
    digests.extend(ids)
    for position in (20, 28):  # the second was computed with pages of its own
        held = pages.take(-(-position // SIZE))
        slot = cache.slots.take(1)[0]
        cache.keep(Tokens(ids[:position], digests), position, held, slot, 0.0, state_in=None)
        pages.give(held)
    longer = max(cache.index, key=lambda kept: kept.position)
    longer.pins += 1  # a sequence begins from it
    assert cache.make_pages(3, 1.0)
    assert [kept.position for kept in cache.index] == [28]


@pytest.mark.parametrize(("host_bytes", "handoff"), [(0, False), (10_000, False), (0, True)])
def test_a_preempted_sequence_continues_where_it_was(host_bytes: int, handoff: bool) -> None:
    worker = Worker(limits(states=3, host_bytes=host_bytes))
    yielding = worker.add(list(range(20)), new=5, priority=9, handoff=handoff)
    worker.step()
    others = [worker.add([n * 30 + i for i in range(3)], new=2) for n in range(1, 5)]  # one for each slot
    for _ in range(2):
        worker.step()
    assert worker.scheduler.sequences[yielding].state is State.QUEUED
    while any(other in worker.scheduler.sequences for other in others):
        plan = worker.step()
    starts = [row.start for _ in range(2) for row in (*plan.rows, *worker.step().rows)]
    assert 8 in starts
    assert 0 not in starts


def test_a_sequence_whose_pages_were_taken_continues_from_host_memory() -> None:
    worker = Worker(limits(states=3, host_bytes=10_000, pages=10))
    yielding = worker.add(list(range(20)), new=5, priority=9)
    worker.step()
    other = worker.add([30 + i for i in range(36)], new=2)  # needs all pages
    worker.step()
    assert worker.scheduler.sequences[yielding].state is State.QUEUED
    while other in worker.scheduler.sequences:
        worker.step()
    fetches = [fetch for _ in range(3) for fetch in worker.step().fetches]
    assert [(f.request_id, f.position) for f in fetches] == [(yielding, 8)]
    worker.finish()
    assert len(worker.answers[yielding]) == 5


def test_host_memory_evicts_a_session_s_earlier_states_first() -> None:
    worker = Worker(limits(states=1, host_bytes=60))  # four states and 20 latents, or the session's 36 and two
    ids = list(range(4))
    for n in range(5):
        answer, _ = turn(worker, ids, new=3)
        ids = [*ids, *answer, 60 + n, 70 + n, 80 + n]
    turn(worker, [90], new=1)  # takes the device's place
    host = worker.scheduler.cache.host
    assert sorted(k.position for k in worker.scheduler.cache.index if k in host)[-1] == 30
    assert len(host) == 2
    assert turn(worker, ids, new=1)[1] == (30, "host")


def test_a_snapshot_lost_by_host_memory_is_computed_again() -> None:
    worker = Worker(limits(states=1, host_bytes=10_000))
    first = list(range(10))
    turn(worker, first, new=1)
    turn(worker, list(range(20, 32)), new=1)
    name = worker.add(first, 1)
    worker.step()
    worker.scheduler.not_coming(name, damaged=True)
    worker.finish()
    assert worker.begun[name] == (0, None)


def test_a_budget_of_nothing_keeps_nothing() -> None:
    worker = Worker(limits(states=0))
    turn(worker, list(range(10)))
    assert turn(worker, list(range(10)))[1] == (0, None)
    assert len(worker.scheduler.cache.index) == 0
    assert worker.scheduler.pages.free == worker.scheduler.limits.pages


def test_latents_on_the_device_need_not_come_with_a_hand_off() -> None:
    worker = Worker(limits())
    turn(worker, list(range(11)))
    prompt = [*range(11), 60, 61]
    name = worker.add(prompt, 3, source=Source("prefill-0", len(prompt)))
    plan = worker.step()
    assert [(e.start, e.tokens) for e in plan.expects] == [(8, 13)]
    worker.memory.pulled[name] = (8, tuple(prompt[8:]), tuple(prompt))
    worker.scheduler.install(name, (200,), 0.0)
    worker.finish()
    assert worker.answers[name] == [114, 115]


def test_a_prefill_worker_sends_only_what_its_peer_lacks() -> None:
    worker = Worker(limits())
    name = worker.add(list(range(11)), handoff=True)
    worker.scheduler.pull(name, "decode-0", have=8)
    exports = [e for _ in range(3) for e in worker.step().exports]
    assert [(e.start, e.stop, e.last) for e in exports] == [(8, 11, True)]


@pytest.mark.parametrize("have", [-1, 3, 4])
def test_a_peer_that_holds_more_than_the_snapshot_is_refused(have: int) -> None:
    worker = Worker(limits())
    name = worker.add([1, 2, 3], handoff=True)
    with pytest.raises(PullError, match=f"holds {have} latents can't have a snapshot of 3 tokens"):
        worker.scheduler.pull(name, "decode-0", have)
    assert worker.step().exports == ()
    worker.scheduler.pull(name, "decode-0", 2)
    assert [(e.start, e.stop, e.last) for e in worker.step().exports] == [(2, 3, True)]


def test_a_snapshot_goes_to_one_peer() -> None:
    worker = Worker(limits())
    name = worker.add(list(range(11)), handoff=True)
    worker.scheduler.pull(name, "decode-0")
    with pytest.raises(PullError, match="goes to decode-0 already"):
        worker.scheduler.pull(name, "decode-1")
    answered_here = worker.add(list(range(11)))
    with pytest.raises(PullError, match="its snapshot is not sent"):
        worker.scheduler.pull(answered_here, "decode-0")


@pytest.mark.parametrize(("position", "have"), [(9, -1), (9, 10), (8, 0)])
def test_a_kept_snapshot_is_refused_to_a_peer_that_can_not_continue_it(position: int, have: int) -> None:
    worker = Worker(limits())
    ids = list(range(10))
    turn(worker, ids, new=1)
    kept = next(k for k in worker.scheduler.cache.index if k.position == 9)
    with pytest.raises(PullError):
        worker.scheduler.keeping.pull("theirs", "prefill-0", position, kept.digest, have)
    assert kept.pins == 0


def test_a_kept_snapshot_is_sent_to_a_peer_that_asks_and_continued_there() -> None:
    holder, taker = Worker(limits()), Worker(limits())
    first = list(range(10))
    answer, _ = turn(holder, first)
    second = [*first, *answer, 50, 51]
    name = taker.add(second, 2, source=Source("decode-0", 12, kept=True))
    plan = taker.step()
    assert [(e.start, e.tokens) for e in plan.expects] == [(0, 12)]
    known = taker.scheduler.sequences[name].known
    holder.scheduler.keeping.pull(name, "prefill-0", 12, known.digests.at(known.ids, 12), 0)
    holder.step()
    taker.memory.pulled[name] = holder.memory.sent[name]
    taker.scheduler.install(name, (), 0.0)
    taker.finish()
    assert taker.begun[name] == (12, "peer")
    # It is kept here too from now on.
    assert turn(taker, second, new=1)[1][1] == "device"


@pytest.mark.parametrize("have", [0, 4, 8])
def test_a_kept_snapshot_that_only_host_memory_holds_is_sent_from_there(have: int) -> None:
    worker = Worker(limits(states=1, host_bytes=10_000))
    ids = list(range(10))
    turn(worker, ids, new=1)
    turn(worker, list(range(20, 32)), new=1)
    kept = next(k for k in worker.scheduler.cache.index if k.position == 9)
    assert kept.slot < 0
    worker.scheduler.keeping.pull("theirs", "prefill-0", 9, kept.digest, have)
    plan = worker.step()
    assert [(lend.start, lend.position) for lend in plan.lends] == [(have, 9)]
    assert worker.memory.sent["theirs"] == (have, tuple(ids[have:9]), tuple(ids[:9]))


def test_copies_for_peers_wait_for_memory_on_the_ranks_in_order() -> None:
    worker = Worker(limits(states=6))
    turn(worker, list(range(30)), new=1)
    kept = next(k for k in worker.scheduler.cache.index if k.position == 29)
    for name in ("a", "b", "c"):
        worker.scheduler.keeping.pull(name, "prefill-0", 29, kept.digest, 12)  # two of 10 + 17 do not fit into 50
    assert [e.request_id for e in worker.step().exports] == ["a"]
    assert worker.step().empty
    assert kept.pins == 2
    handed = worker.add(list(range(50, 62)), handoff=True)
    worker.scheduler.pull(handed, "decode-0")  # 10 + 12 fit beside the copy, once that is planned first
    exports = [e.request_id for _ in range(3) for e in worker.step().exports]
    assert set(exports) == {handed}
    worker.scheduler.keeping.lending.ended("a")
    assert [e.request_id for e in worker.step().exports] == ["b"]
    worker.scheduler.keeping.lending.call_off("c")
    assert kept.pins == 0


def test_a_kept_snapshot_that_is_not_there_is_refused_and_computed() -> None:
    holder, taker = Worker(limits()), Worker(limits())
    name = taker.add(list(range(10)), 2, source=Source("decode-0", 8, kept=True))
    taker.step()
    with pytest.raises(PullError, match="no longer kept"):
        holder.scheduler.keeping.pull(name, "prefill-0", 8, b"x" * 16, 0)
    taker.scheduler.not_coming(name)
    taker.finish()
    assert taker.begun[name] == (0, None)
    assert taker.scheduler.cache.totals.misses["peer"] == 1


class Life:
    """Random events in a worker's life. turns: the ids that each sequence began with."""

    def __init__(self, worker: Worker, rng: random.Random) -> None:
        self.worker = worker
        self.rng = rng
        self.now = 0.0
        self.turns: dict[str, list[int]] = {}
        self.dropped: set[str] = set()
        self.lent: list[str] = []
        self.stems = [[s * 10 + i for i in range(12)] for s in range(2)]

    def one(self) -> str:
        names = list(self.worker.scheduler.sequences)
        return self.rng.choice(names) if names else ""

    def add(
        self, ids: list[int], handoff: bool = False, boundaries: tuple[int, ...] = (), source: Source | None = None
    ) -> None:
        rng = self.rng
        new = rng.randint(1 if source is None or source.kept else 2, 5)
        self.turns[self.worker.add(ids, new, rng.choice((0, 0, 5)), handoff, source, boundaries)] = ids

    def prompt(self) -> list[int]:
        rng = self.rng
        return [*rng.choice(self.stems)[: rng.randint(1, 12)], *(rng.randint(0, 3) for _ in range(rng.randint(0, 9)))]

    def new(self, handoff: bool = False) -> None:
        ids = self.prompt()
        self.add(ids, handoff, tuple(sorted(self.rng.sample(range(1, len(ids) + 1), min(2, len(ids))))))

    def handoff(self) -> None:
        self.new(handoff=True)

    def handed(self) -> None:
        """A prompt that another worker computes."""
        ids = self.prompt()
        self.add(ids, source=Source("prefill-0", len(ids)))

    def peer(self) -> None:
        """A prompt of which another worker keeps a beginning."""
        ids = self.prompt()
        if len(ids) > 1:
            source = Source("decode-1", self.rng.randint(1, len(ids) - 1), kept=True)
            self.add(ids, self.rng.random() < 0.5, source=source)

    def gone(self) -> None:
        """A snapshot that a peer should keep does not come."""
        seq = self.worker.scheduler.sequences.get(self.one())
        if seq is not None and seq.source is not None and seq.source.kept:
            self.worker.memory.pulled.pop(seq.request_id, None)
            self.worker.scheduler.not_coming(seq.request_id)

    def lend(self) -> None:
        """A peer asks for a kept snapshot, or calls that off."""
        kept = list(self.worker.scheduler.cache.index)
        if self.lent and self.rng.random() < 0.3:
            self.worker.scheduler.keeping.lending.call_off(self.rng.choice(self.lent))
        elif kept:
            one = self.rng.choice(kept)
            name = f"theirs{len(self.lent)}"
            self.lent.append(name)
            with suppress(PullError):
                self.worker.scheduler.keeping.pull(
                    name, "prefill-1", one.position, one.digest, self.rng.randint(-1, one.position + 1)
                )

    def fork(self) -> None:
        done = [t for t in self.turns if self.worker.ended.get(t) in ("stop", "length")]
        if done:
            old = self.rng.choice(done)
            for _ in range(self.rng.randint(1, 2)):
                self.add([*self.turns[old], *self.worker.answers[old], 1, 2][:34])

    def step(self) -> None:
        self.worker.step(self.now)

    def mid(self) -> None:
        name = self.one()
        self.worker.step(self.now, [name])
        self.dropped.add(name)

    def abort(self) -> None:
        name = self.one()
        if self.worker.scheduler.remove(name):
            self.dropped.add(name)

    def pull(self) -> None:
        seq = self.worker.scheduler.sequences.get(self.one())
        if seq is None:
            return
        have = self.rng.choice((-1, 0, SIZE, 2 * SIZE))
        fits = seq.handoff and seq.peer is None and 0 <= have < seq.prompt_tokens
        with nullcontext() if fits else pytest.raises(PullError):
            self.worker.scheduler.pull(seq.request_id, "decode-0", have)

    def sent(self) -> None:
        for s in [s for s in self.worker.scheduler.sequences.values() if s.state is State.SENDING]:
            output = self.worker.scheduler.sent(s.request_id, self.now)
            if output:
                self.worker.take(output)

    def arrive(self) -> None:
        self.worker.arrive(self.now)

    def damaged(self) -> None:
        name = self.one()
        if name in self.worker.memory.fetched:
            self.worker.scheduler.not_coming(name, damaged=True)

    def lent_out(self) -> None:
        """A copy was sent completely."""
        if self.lent:
            self.worker.scheduler.keeping.lending.ended(self.rng.choice(self.lent))

    def pin(self) -> None:
        """A session stands at one of its snapshots, or leaves."""
        kept, session = list(self.worker.scheduler.cache.index), f"session{self.rng.randint(0, 2)}"
        marks = [Mark(k.position, k.digest) for k in self.rng.sample(kept, min(2, len(kept)))]
        self.worker.scheduler.pin(session, marks, self.now, self.now + 40.0)

    def unpin(self) -> None:
        self.worker.scheduler.cache.pins.expire(self.now)
        self.worker.scheduler.cache.expire_files(self.now)
        assert all(k.used > self.now - 100.0 or k.pins for k in self.worker.scheduler.cache.disk)

    def delete(self) -> None:
        self.worker.scheduler.unpin(f"session{self.rng.randint(0, 2)}")

    def park(self) -> None:
        kept = list(self.worker.scheduler.cache.index)
        if kept:
            one = self.rng.choice(kept)
            self.worker.scheduler.park(Mark(one.position, one.digest), self.now)

    def unwritten(self) -> None:
        """A file could not be written."""
        if self.worker.memory.disk:
            scheduler = self.worker.scheduler
            scheduler.cache.write_failed(self.rng.choice(list(self.worker.memory.disk)))
            scheduler.keeping.lending.forget(lambda lent: scheduler.cache.tier(lent.kept) is None)

    def clear(self) -> None:
        self.worker.scheduler.cache.clear()

    def settle(self) -> None:
        for s in list(self.worker.scheduler.sequences.values()):
            if s.handoff:
                self.worker.scheduler.remove(s.request_id)
                self.dropped.add(s.request_id)
        for name in self.lent:
            self.worker.scheduler.keeping.lending.call_off(name)
        self.worker.finish(self.now)


EVENTS = ("new", "new", "fork", "fork", "handoff", "handed", "peer", "step", "step", "step", "step", "mid", "abort",
          "pull", "sent", "arrive", "damaged", "gone", "lend", "lent_out", "clear",
          "pin", "pin", "unpin", "delete", "park", "unwritten")  # fmt: skip
# Without a least size, lists have five items on average.
LIVES = st.lists(st.sampled_from(EVENTS), max_size=60) | st.lists(st.sampled_from(EVENTS), min_size=40, max_size=80)


@pytest.mark.parametrize(("host_bytes", "disk_bytes"), [(0, 0), (60, 0), (60, 300)])
@settings(max_examples=200, deadline=None)
@given(
    events=LIVES,
    seed=st.integers(0, 1_000_000),
    states=st.integers(0, 3),
    drafts=st.sampled_from((0, 3)),
    ahead=st.booleans(),
)
# A sequence begins from a snapshot on the host, which the one that yields its slot brings back to the device.
@example(["handed", "fork", "pull", "new", "handed", "step", "new", "peer", "gone"], 5394, 2, 0, False)
# A file is erased in the step that was to erase its state alone, before it is written.
@example(
    ["new", "peer", "pull", "handed", "pull", "step", "new", "lend", "new", "fork", "new", "step", "step", "pull",
     "damaged", "delete", "new", "delete", "new", "fork", "pull", "mid", "unpin", "peer", "new", "abort", "new",
     "step", "unpin", "fork", "step", "new", "fork", "step", "damaged", "unwritten", "step", "lend", "new", "pin",
     "unpin", "clear"],
    0, 2, 0, False,
)  # fmt: skip
def test_references_always_add_up_and_states_are_what_they_claim(
    host_bytes: int, disk_bytes: int, events: list[str], seed: int, states: int, drafts: int, ahead: bool
) -> None:
    worker = Worker(limits(states, host_bytes if states else 0, 14, disk_bytes if states else 0, drafts), ahead)
    life = Life(worker, random.Random(seed))
    for event in events:
        life.now += life.rng.choice((0.0, 0.5, 30.0))
        getattr(life, event)()
        worker.check()
    life.settle()
    assert set(worker.ended) | life.dropped >= set(life.turns)
    scheduler = worker.scheduler
    scheduler.cache.clear()
    assert scheduler.pages.free == scheduler.limits.pages
    assert scheduler.slots.free == scheduler.limits.slots
    assert scheduler.cache.slots.free == scheduler.cache.slots.size
    worker.memory.run(scheduler.plan(life.now).plan)
    assert not worker.memory.host
    assert not worker.memory.disk


@pytest.mark.parametrize(("ahead", "drafts"), [(False, 0), (True, 0), (False, 3), (True, 3)])
def test_states_of_a_running_answer_are_kept_at_intervals(ahead: bool, drafts: int) -> None:
    worker = Worker(replace(limits(states=8, drafts=drafts), answer_tokens=3), ahead=ahead)
    told: list[int] = []
    inner = worker.take

    def take(output: SeqOutput) -> None:
        told.extend([output.kept_tokens] if output.kept_tokens else [])
        inner(output)

    worker.take = take  # type: ignore[method-assign]
    prompt = list(range(19))
    name = worker.add(prompt, new=10)
    while name not in worker.ended:
        worker.step()
    assert told
    assert all(b - a >= 3 for a, b in itertools.pairwise([19, *told]))
    assert told[-1] >= 19 + 10 - 2 * (3 + drafts)
    for position in told:
        again = worker.add([*prompt, *worker.answers[name]][: position + 1], new=2)
        while again not in worker.ended:
            worker.step()
        assert worker.begun[again] == (position, "device")
