"""Tests that sequences of a better priority preempt worse ones at once, without changing their answers."""

import pytest

from tests.workers.test_scheduler import LIMITS, Ranks, answer, check, seq, step
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import State
from workers.schedule.step import StepPlan

BATCH = 1000


def full(kind: str) -> Scheduler:
    """A worker whose slots are all taken at a batch's priority: by running sequences, pulls or held snapshots."""
    scheduler = Scheduler(LIMITS)
    for i in range(LIMITS.slots):
        source = "prefill-0" if kind == "pulling" else None
        scheduler.add(seq(f"b{i}", 2, 6, BATCH, handoff=kind == "held", source=source))
    step(scheduler)
    for name in ("b0", "b1"):  # no more are pulled at once
        scheduler.install(name, (5,), 0.0)
    step(scheduler)
    states = {"running": State.RUNNING, "pulling": State.PULLING, "held": State.HELD}
    assert not scheduler.slots.free
    assert states[kind] in {s.state for s in scheduler.sequences.values()}
    return scheduler


def slots_of(plan: StepPlan) -> list[int]:
    return [row.slot for row in plan.rows]


@pytest.mark.parametrize("kind", ["running", "pulling", "held"])
def test_a_live_request_is_in_the_very_next_plan_though_batch_holds_every_slot(kind: str) -> None:
    scheduler = full(kind)
    live = seq("live", 3, 2)
    scheduler.add(live)
    plan, outputs = step(scheduler)
    check(scheduler)
    assert plan.rows[0].slot == live.slot
    assert plan.rows[0].start == 0
    assert "live" in [o.request_id for o in outputs]
    assert sum(s.state in (State.QUEUED, State.DISPLACED) for s in scheduler.sequences.values()) == 1


@pytest.mark.parametrize("kind", ["running", "pulling", "held"])
def test_a_live_snapshot_is_pulled_in_the_very_next_plan(kind: str) -> None:
    scheduler = full(kind)
    scheduler.add(seq("live", 3, 2, source="prefill-0"))
    assert [e.request_id for e in scheduler.plan(0.0).plan.expects] == ["live"]
    assert scheduler.sequences["live"].state is State.PULLING


def test_the_last_in_line_of_the_worst_priority_yields_and_never_an_equal_or_better_one() -> None:
    scheduler = Scheduler(LIMITS)
    for name, priority in (("old", 5), ("worst", 7), ("young", 5), ("live", 0)):
        scheduler.add(seq(name, 1, 20, priority))
        step(scheduler)
    yielded: list[list[str]] = []
    seen: set[str] = set()
    for name, priority in (("equal", 7), ("first", 1), ("second", 1), ("third", 1), ("fourth", 1)):
        scheduler.add(seq(name, 1, 20, priority))
        step(scheduler)
        check(scheduler)
        waiting = [s.request_id for s in scheduler.sequences.values() if s.state is State.QUEUED]
        yielded.append([w for w in waiting if w not in seen])
        seen.update(waiting)
    assert yielded == [["equal"], ["worst"], ["young"], ["old"], ["fourth"]]


def test_live_rows_take_the_budget_first() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("batch", 1, 20, BATCH))
    step(scheduler)
    scheduler.add(seq("live", 11, 2))
    slot = {name: s.slot for name, s in scheduler.sequences.items()}
    plan, _ = step(scheduler)
    live = scheduler.sequences["live"].slot
    assert [(r.slot, len(r.token_ids)) for r in plan.rows] == [(live, LIMITS.max_step_tokens)]
    plan, _ = step(scheduler)
    assert [(r.slot, len(r.token_ids)) for r in plan.rows] == [(live, 5), (slot["batch"], 1)]


def test_a_live_sequence_that_grows_takes_the_pages_of_batch() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("batch", 20, 2, BATCH, handoff=True))
    while scheduler.sequences["batch"].state is not State.HELD:
        step(scheduler)
    scheduler.add(seq("live", 3, 29))
    for _ in range(28):
        step(scheduler)
        check(scheduler)
    assert len(scheduler.sequences["live"].tokens) == 31
    assert scheduler.sequences["batch"].state is State.QUEUED


def test_a_held_snapshot_that_yielded_is_computed_again_without_a_second_first_token() -> None:
    scheduler, ranks = full("held"), Ranks()
    scheduler.add(seq("live", 3, 3))
    flight = scheduler.plan(0.0)
    plan = flight.plan
    ranks.run(plan)
    scheduler.update(flight, answer(plan), 0.0)
    (back,) = (s for s in scheduler.sequences.values() if s.state is State.QUEUED)
    assert back.generated == 1
    scheduler.pull(back.request_id, "decode-0")  # its decode worker has room before it is computed again
    scheduler.remove("b0")
    exports = []
    for _ in range(4):
        flight = scheduler.plan(1.0)
        plan = flight.plan
        ranks.run(plan)
        exports += [e for e in plan.exports if e.request_id == back.request_id]
        assert back.request_id not in [o.request_id for o in scheduler.update(flight, answer(plan), 1.0)]
    assert [(e.start, e.stop, e.last) for e in exports] == [(0, 2, True)]
    assert back.state is State.SENDING
    assert back.generated == 1


def test_parts_that_had_left_before_a_preemption_do_not_leave_again() -> None:
    scheduler, ranks = Scheduler(LIMITS), Ranks()
    scheduler.add(seq("batch", 14, 2, BATCH, handoff=True))
    scheduler.pull("batch", "decode-0")
    for i in range(4):
        if i == 1:
            for j in range(LIMITS.slots):
                scheduler.add(seq(f"live{j}", 1, 2))
        flight = scheduler.plan(0.0)
        plan = flight.plan
        ranks.run(plan)
        scheduler.update(flight, answer(plan), 0.0)
    while scheduler.sequences["batch"].state is not State.SENDING:
        flight = scheduler.plan(0.0)
        plan = flight.plan
        ranks.run(plan)  # which checks that each part continues where the last one ended
        scheduler.update(flight, answer(plan), 0.0)
    assert ranks.sent["batch"] == 14


def test_a_snapshot_that_arrives_without_room_is_dropped_and_computed() -> None:
    scheduler = full("pulling")
    pulled = [s for s in scheduler.sequences.values() if s.state is State.PULLING]
    for i in range(LIMITS.slots):
        scheduler.add(seq(f"live{i}", 1, 2))
    step(scheduler)
    assert all(s.state is State.DISPLACED for s in pulled)
    for s in pulled:
        scheduler.install(s.request_id, (5,), 0.0)
    plan, _ = step(scheduler)
    assert {d.request_id for d in plan.discards} == {s.request_id for s in pulled}
    outputs = [o for _ in range(40) for o in step(scheduler)[1]]
    first = {s.request_id: next(o.offset for o in outputs if o.request_id == s.request_id) for s in pulled}
    assert set(first.values()) == {1}  # the prompt's own token came from the prefill worker
    assert not scheduler.sequences


def test_a_displaced_pull_continues_without_a_second_request() -> None:
    scheduler = full("pulling")
    scheduler.add(seq("live", 1, 1))
    plan, _ = step(scheduler)
    parked = next(s for s in scheduler.sequences.values() if s.state is State.DISPLACED)
    plan, _ = step(scheduler)
    assert not plan.expects
    assert parked.state is State.PULLING
    scheduler.install(parked.request_id, (5,), 0.0)
    assert [i.request_id for i in scheduler.plan(0.0).plan.installs] == [parked.request_id]


def test_a_pull_of_a_worse_priority_does_not_overtake_waiting_prompts() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(seq("yields", 20, 2, 1))
    step(scheduler)
    scheduler.add(seq("small", 1, 2, 0))
    scheduler.add(seq("spends", 8, 2, 0))
    scheduler.add(seq("pulled", 1, 2, 0, source="prefill-0"))
    scheduler.add(seq("worse", 1, 2, 9, source="prefill-0"))
    plan, _ = step(scheduler)
    check(scheduler)
    assert [e.request_id for e in plan.expects] == ["pulled"]
    assert scheduler.sequences["yields"].state is State.QUEUED
    assert scheduler.sequences["worse"].state is State.QUEUED
