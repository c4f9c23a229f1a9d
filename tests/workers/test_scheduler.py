"""Tests the scheduler's invariants over random lives of a worker, with made-up results and no tensors."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from wire.protocol import SamplingParams, SeqOutput
from workers.cache.allocator import Allocator
from workers.schedule.builder import InFlight
from workers.schedule.keeping import PullError
from workers.schedule.limits import Limits, Staging
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence, Source, State
from workers.schedule.step import StepPlan, StepResult

HOLDING = (State.PULLING, State.RUNNING, State.HELD)
LIMITS = Limits(pages=12, page_size=4, slots=4, max_model_len=32, max_step_tokens=6, window=2, hold_s=5.0)


def seq(
    name: str,
    prompt: int,
    new: int = 4,
    priority: int = 0,
    handoff: bool = False,
    source: str | None = None,
    stop: tuple[int, ...] = (),
) -> Sequence:
    return Sequence(
        request_id=name,
        tokens=list(range(prompt)),
        prompt_tokens=prompt,
        sampling=SamplingParams(max_tokens=new, seed=0, stop_token_ids=stop),
        priority=priority,
        order=0,
        handoff=handoff,
        source=Source(source, prompt) if source else None,
        arrived=0.0,
    )


def answer(plan: StepPlan, token: int = 7, going: int = 0) -> StepResult:
    """What ranks give to a plan. going: rows that go on from the step before."""
    sampled = going + sum(r.sample for r in plan.rows)
    return StepResult(plan.step, ((token,),) * sampled, ((),) * sampled, (), 0.001)


def step(scheduler: Scheduler, now: float = 0.0) -> tuple[StepPlan, list[SeqOutput]]:
    flight = scheduler.plan(now)
    plan = flight.plan
    return plan, scheduler.update(flight, answer(plan), now)


def check(scheduler: Scheduler) -> None:
    """Check what must hold between any two calls."""
    held = [s for s in scheduler.sequences.values() if s.slot >= 0]
    pages = [p for s in scheduler.sequences.values() for p in s.pages]
    assert len(set(pages)) == len(pages)
    assert len({s.slot for s in held}) == len(held)
    assert scheduler.pages.free == LIMITS.pages - len(pages)
    assert scheduler.slots.free == LIMITS.slots - len(held)
    for s in scheduler.sequences.values():
        holds = s.state in HOLDING
        assert holds == (s.slot >= 0) == bool(s.pages)
        assert len(s.pages) * LIMITS.page_size >= s.computed or not holds


def check_plan(plan: StepPlan) -> None:
    assert sum(len(r.token_ids) for r in plan.rows) <= LIMITS.max_step_tokens
    assert len({r.slot for r in plan.rows}) == len(plan.rows)
    assert all(r.token_ids for r in plan.rows)


def check_precedence(scheduler: Scheduler, plan: StepPlan, before: dict[str, int]) -> None:
    """Check a plan's treatment of priorities. before: the pages of each sequence that held a slot."""
    held = [s for s in scheduler.sequences.values() if s.slot >= 0]
    lost = [s for s in scheduler.sequences.values() if s.slot < 0 and s.request_id in before]
    # What a snapshot held that leaves within this plan is free for the next one.
    leaving = [s for s in lost if s.state is State.SENDING]
    free_slots = scheduler.slots.free - len(leaving)
    free_pages = scheduler.pages.free - sum(before[s.request_id] for s in leaving)
    for victim in (s for s in lost if s.state is not State.SENDING):
        assert all(s.priority <= victim.priority for s in held if not (s.state is State.HELD and s.peer))
    rows = {r.slot for r in plan.rows}
    worst = max((s.priority for s in held if s.slot in rows), default=-1)
    assert all(s.slot in rows for s in held if s.state is State.RUNNING and s.pending and s.priority < worst)
    spent = sum(len(r.token_ids) for r in plan.rows) == LIMITS.max_step_tokens
    waiting = [s for s in scheduler.sequences.values() if s.state in (State.QUEUED, State.DISPLACED)]
    for s in sorted(waiting, key=lambda s: (s.priority, s.order))[:1]:
        pulls = [t for t in scheduler.sequences.values() if t.state in (State.PULLING, State.DISPLACED)]
        ahead = sum(t.priority <= s.priority for t in pulls)
        if (s.source is None and spent) or (s.source and s.state is State.QUEUED and ahead >= LIMITS.window):
            continue
        worse = [t for t in held if t.priority > s.priority and not (t.state is State.HELD and t.peer)]
        pages = free_pages + sum(len(t.pages) for t in worse)
        reserve = sum(t.state is State.RUNNING and t.priority <= s.priority for t in held)
        no_slot = not free_slots and not worse
        assert no_slot or pages < -(-(len(s.tokens) + 1) // LIMITS.page_size) + reserve


class Ranks:
    """A rank's knowledge: each slot's page table and how many of its tokens are computed."""

    def __init__(self) -> None:
        self.tables: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.expected: set[str] = set()  # snapshots in staging memory, or on the way there
        self.sent: dict[str, int] = {}

    def run(self, plan: StepPlan) -> None:
        for discard in plan.discards:
            self.expected.discard(discard.request_id)
        for expect in plan.expects:
            assert expect.request_id not in self.expected
            self.expected.add(expect.request_id)
        assert len({i.slot for i in plan.installs}) == len(plan.installs)
        for install in plan.installs:
            self.expected.remove(install.request_id)
            self.computed[install.slot] = -1  # known to the test by the row that follows
        for row in plan.rows:
            if row.page_offset == 0 and row.new_pages:
                self.tables[row.slot] = []
            table = self.tables[row.slot]
            assert len(table) == row.page_offset or not row.new_pages
            table.extend(row.new_pages)
            stop = row.start + len(row.token_ids)
            assert len(table) * LIMITS.page_size >= stop
            if row.start:
                assert self.computed[row.slot] in (row.start, -1)
            self.computed[row.slot] = stop
        for export in plan.exports:
            assert export.start == self.sent.get(export.request_id, 0)
            assert export.stop > export.start
            pages = self.tables[export.slot][export.start // LIMITS.page_size : -(-export.stop // LIMITS.page_size)]
            assert export.pages == tuple(pages)
            assert self.computed[export.slot] >= export.stop
            self.sent[export.request_id] = export.stop


PRIORITIES = st.sampled_from((0, 0, 1, 9))
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("local"), st.integers(1, 20), st.integers(1, 11), PRIORITIES),
        st.tuples(st.just("handoff"), st.integers(1, 20), st.integers(1, 11), PRIORITIES),
        st.tuples(st.just("pulled"), st.integers(1, 20), st.integers(2, 11), PRIORITIES),
        st.tuples(st.just("abort"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("peer"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("arrive"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("sent"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("fail"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("mid"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def planned(scheduler: Scheduler, now: float) -> InFlight:
    """Make the next plan and check it."""
    before = {s.request_id: len(s.pages) for s in scheduler.sequences.values() if s.slot >= 0}
    flight = scheduler.plan(now)
    plan = flight.plan
    check_plan(plan)
    check_precedence(scheduler, plan, before)
    return flight


def settle(scheduler: Scheduler, ranks: Ranks, ended: Callable[[SeqOutput | None], None]) -> None:
    """Check that all outstanding requests end within a bounded number of steps."""
    for _ in range(600):
        for s in list(scheduler.sequences.values()):
            if s.handoff and s.peer is None:
                scheduler.pull(s.request_id, "decode-0")
            if s.state is State.SENDING:
                ended(scheduler.sent(s.request_id, 1.0))
            if s.state in (State.PULLING, State.DISPLACED):
                scheduler.install(s.request_id, (5,), 1.0)
        flight = planned(scheduler, 1.0)
        plan = flight.plan
        ranks.run(plan)
        for output in scheduler.update(flight, answer(plan), 1.0):
            ended(output if output.finish else None)
        check(scheduler)
        if not scheduler.sequences:
            return
    raise AssertionError(f"{len(scheduler.sequences)} sequences never end")


@settings(max_examples=300, deadline=None)
@given(OPS)
def test_nothing_leaks_overlaps_or_starves(ops: list[tuple[str, int, int, int]]) -> None:
    scheduler = Scheduler(LIMITS)
    ranks = Ranks()
    finished: dict[str, int] = {}
    dropped: set[str] = set()
    names: list[str] = []

    def ended(output: SeqOutput | None) -> None:
        if output is not None:
            finished[output.request_id] = finished.get(output.request_id, 0) + 1

    for kind, a, b, priority in ops:
        name = names[a % len(names)] if names else ""
        if kind in ("local", "handoff", "pulled"):
            names.append(f"r{len(names)}")
            source = "prefill-0" if kind == "pulled" else None
            scheduler.add(seq(names[-1], a, b, priority, handoff=kind == "handoff", source=source))
        elif kind == "abort" and scheduler.remove(name):
            dropped.add(name)
        elif kind == "fail":
            ended(scheduler.fail(name, "broken", 0.0))
        elif kind == "peer" and name in scheduler.sequences:
            with suppress(PullError):
                scheduler.pull(name, "decode-0")
        elif kind == "arrive" and name in scheduler.sequences:
            scheduler.install(name, (5,), 0.0)
        elif kind == "sent":
            ended(scheduler.sent(name, 0.0))
        elif kind in ("step", "mid"):
            flight = planned(scheduler, 0.0)
            plan = flight.plan
            ranks.run(plan)
            if kind == "mid" and scheduler.remove(name):  # gone while the step is under way
                dropped.add(name)
            for output in scheduler.update(flight, answer(plan), 0.0):
                ended(output if output.finish else None)
        check(scheduler)
    settle(scheduler, ranks, ended)
    assert scheduler.pages.free == LIMITS.pages
    assert scheduler.slots.free == LIMITS.slots
    ranks.run(scheduler.plan(2.0).plan)
    assert not ranks.expected
    assert set(finished) | dropped == set(names)
    assert not set(finished) & dropped
    assert all(count == 1 for count in finished.values())


def test_prompt_is_chunked_by_the_budget_and_running_sequences_come_first() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("a", 3))
    step(scheduler)
    scheduler.add(seq("b", 14))
    plan, _ = step(scheduler)
    assert [(r.start, len(r.token_ids), r.sample) for r in plan.rows] == [(3, 1, True), (0, 5, False)]
    plan, _ = step(scheduler)
    assert [(r.start, len(r.token_ids), r.sample) for r in plan.rows] == [(4, 1, True), (5, 5, False)]
    plan, _ = step(scheduler)
    assert [(r.start, len(r.token_ids), r.sample) for r in plan.rows] == [(5, 1, True), (10, 4, True)]


def test_priority_goes_first_then_arrival() -> None:
    scheduler = Scheduler(LIMITS)
    for name, priority in (("late", 1), ("first", 0), ("second", 0)):
        scheduler.add(seq(name, 6, priority=priority))
    order = [s.request_id for _ in range(3) for s in [plan_one(scheduler)]]
    assert order == ["first", "second", "late"]


def plan_one(scheduler: Scheduler) -> Sequence:
    """Step until a sequence's prompt is computed; removes and returns that sequence."""
    while True:
        _, outputs = step(scheduler)
        if outputs:
            removed = scheduler.remove(outputs[0].request_id)
            assert removed is not None
            return removed


def test_a_full_worker_preempts_the_last_in_line_and_still_ends_it() -> None:
    scheduler = Scheduler(LIMITS)
    for name in ("a", "b", "c"):
        scheduler.add(seq(name, 11, new=20))
    preempted = False
    ends: list[str] = []
    for _ in range(300):
        _, outputs = step(scheduler)
        check(scheduler)
        ends += [o.request_id for o in outputs if o.finish]
        preempted |= any(s.state is State.QUEUED and s.generated for s in scheduler.sequences.values())
        if not scheduler.sequences:
            break
    assert preempted
    assert scheduler.preempted > 0
    assert sorted(ends) == ["a", "b", "c"]
    assert ends[0] == "a"


def test_stop_token_ends_a_sequence_but_not_before_min_tokens() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("a", 3, new=9, stop=(7,)))
    _, outputs = step(scheduler)
    assert [(o.finish, o.token_ids) for o in outputs] == [("stop", (7,))]
    patient = seq("b", 3, new=9, stop=(7,))
    patient.sampling = structs.replace(patient.sampling, min_tokens=1)
    scheduler.add(patient)
    assert [o.finish for _ in range(2) for o in step(scheduler)[1]] == [None, "stop"]


def test_handed_off_while_the_prompt_is_computed() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("a", 8, handoff=True))
    scheduler.pull("a", "decode-0")
    plan, _ = step(scheduler)
    assert [(e.start, e.stop, e.last) for e in plan.exports] == [(0, 6, False)]
    assert plan.exports[0].pages == plan.rows[0].new_pages[:2]
    plan, outputs = step(scheduler)
    assert [(e.start, e.stop, e.last) for e in plan.exports] == [(6, 8, True)]
    assert outputs[0].finish is None
    assert scheduler.pages.free == LIMITS.pages
    output = scheduler.sent("a", 2.0)
    assert output is not None
    assert output.finish == "handoff"


def test_sent_before_its_step_is_committed() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("a", 4, handoff=True))
    scheduler.pull("a", "decode-0")
    flight = scheduler.plan(0.0)
    plan = flight.plan
    assert scheduler.sent("a", 0.0) is None
    assert [o.finish for o in scheduler.update(flight, answer(plan), 0.0)] == [None]
    assert scheduler.sequences["a"].gone
    output = scheduler.sent("a", 0.0)
    assert output is not None
    assert output.finish == "handoff"
    assert not scheduler.sequences
    assert scheduler.plan(0.0).plan.empty


def test_a_snapshot_is_held_until_pulled_or_overdue() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("a", 5, handoff=True))
    scheduler.add(seq("b", 5, handoff=True))
    while scheduler.sequences["b"].state is not State.HELD:
        step(scheduler, now=1.0)
    assert scheduler.plan(2.0).plan.empty
    scheduler.pull("a", "decode-0")
    assert [(e.request_id, e.start, e.stop, e.last) for e in scheduler.plan(2.0).plan.exports] == [("a", 0, 5, True)]
    late = scheduler.overdue(now=1.0 + LIMITS.hold_s + 0.1)
    assert [(o.request_id, o.finish) for o in late] == [("b", "error")]
    assert scheduler.pages.free == LIMITS.pages


def test_a_sequence_aborted_while_pulling_is_discarded_on_the_ranks() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("a", 5, source="prefill-0"))
    assert [e.request_id for e in scheduler.plan(0.0).plan.expects] == ["a"]
    scheduler.remove("a")
    assert [d.request_id for d in scheduler.plan(0.0).plan.discards] == ["a"]
    scheduler.install("a", (5,), 0.0)
    assert scheduler.plan(0.0).plan.empty


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="max_step_tokens 3 is below slots 4"):
        Limits(pages=8, page_size=4, slots=4, max_model_len=32, max_step_tokens=3, window=1, hold_s=1.0)
    with pytest.raises(ValueError, match="hold less than one sequence"):
        Limits(pages=7, page_size=4, slots=4, max_model_len=32, max_step_tokens=8, window=1, hold_s=1.0)


def test_pool_refuses_a_double_free_and_taking_more_than_there_is() -> None:
    pool = Allocator("page", 2)
    taken = pool.take(2)
    with pytest.raises(ValueError, match="1 pages asked, 0 of 2 free"):
        pool.take(1)
    pool.give(taken)
    with pytest.raises(ValueError, match="freed twice"):
        pool.give(taken[:1])


def _room_for(tokens: int) -> Scheduler:
    """A worker whose ranks have memory for snapshots of so many tokens in total, and a larger window."""
    return Scheduler(replace(LIMITS, window=9, staging=Staging(budget=10 * tokens, token=10)))


def test_pulls_wait_for_memory_on_the_ranks() -> None:
    scheduler = _room_for(10)
    for name in ("a", "b", "c"):
        scheduler.add(seq(name, 5, source="prefill-0"))
    plan, _ = step(scheduler)
    assert [e.request_id for e in plan.expects] == ["a", "b"]
    plan, _ = step(scheduler)
    assert not plan.expects
    scheduler.install("a", (1,), 0.0)
    plan, _ = step(scheduler)
    assert [e.request_id for e in plan.expects] == ["c"]


def test_a_snapshot_longer_than_the_rest_of_memory_comes_alone() -> None:
    scheduler = _room_for(10)
    for name, prompt in (("a", 4), ("long", 14), ("b", 4)):
        scheduler.add(seq(name, prompt, source="prefill-0"))
    plan, _ = step(scheduler)
    assert [e.request_id for e in plan.expects] == ["a", "b"]
    scheduler.install("a", (1,), 0.0)
    scheduler.install("b", (1,), 0.0)
    plan, _ = step(scheduler)
    assert [e.request_id for e in plan.expects] == ["long"]


def test_exports_wait_for_memory_on_the_ranks_and_then_go_on_to_their_end() -> None:
    scheduler = _room_for(10)
    for name in ("a", "b"):
        scheduler.add(seq(name, 8, handoff=True))
        scheduler.pull(name, "decode-0")
    gone: dict[str, list[int]] = {"a": [], "b": []}
    for _ in range(6):
        plan, _ = step(scheduler)
        for export in plan.exports:
            gone[export.request_id].append(export.stop)
    # Room for one: its parts leave as they are computed; the other is computed meanwhile and keeps its places.
    assert gone == {"a": [6, 8], "b": []}
    assert scheduler.sequences["b"].pages
    scheduler.sent("a", 0.0)
    plan, _ = step(scheduler)
    assert [(e.request_id, e.start, e.stop, e.last) for e in plan.exports] == [("b", 0, 8, True)]
    assert not scheduler.sequences["b"].pages


def test_prompts_of_a_tenant_with_more_than_its_share_yield_in_the_middle_and_keep_their_places() -> None:
    scheduler = Scheduler(LIMITS)
    first, second, other = seq("first", 14), seq("second", 6), seq("other", 8)
    first.behind = second.behind = True
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    assert (first.computed, scheduler.load.behind) == (6, 2)
    scheduler.add(other)
    step(scheduler)
    assert (first.computed, other.computed, second.state) == (6, 6, State.QUEUED)
    step(scheduler)
    assert (first.computed, other.computed, second.state) == (10, 8, State.QUEUED)
    step(scheduler)
    assert (first.computed, other.generated, second.computed) == (14, 2, 1)
    assert (scheduler.preempted, scheduler.load.behind) == (0, 1)
