"""Tests steps that are planned while the previous one runs."""

from dataclasses import replace

from tests.workers.test_scheduler import LIMITS, answer, seq
from workers.schedule.ahead import outcomes, rows_ahead
from workers.schedule.builder import InFlight, Size
from workers.schedule.limits import Limits
from workers.schedule.scheduler import Scheduler
from workers.schedule.step import Ahead, Row, StepResult

ROOMY = replace(LIMITS, pages=40, max_step_tokens=16)


def decoding(*news: int, limits: Limits = ROOMY, priority: int = 0) -> tuple[Scheduler, InFlight]:
    """A scheduler whose sequences have 3 prompt tokens and gain so many, and the first step that decodes them all."""
    scheduler = Scheduler(limits)
    for n, new in enumerate(news):
        scheduler.add(seq(f"r{n}", 3, new, priority, stop=(9,)))
    flight = scheduler.plan(0.0)
    scheduler.update(flight, answer(flight.plan), 0.0)
    return scheduler, scheduler.plan(0.0)


def names(flight: InFlight) -> list[str]:
    """Whose rows a step has, in order."""
    going = flight.batch.seqs if flight.batch else []
    return [s.request_id for s in (*going, *(owner for owner, _ in flight.owners))]


def row(slot: int, start: int, drafts: int = 0) -> Row:
    return Row(slot, start, (5,), 0, (), True, drafts=drafts)


def test_rows_continue_after_the_tokens_they_sampled() -> None:
    before = [row(0, 10, 3), row(1, 20, 3), row(2, 30, 3), row(3, 40, 3), row(4, 50)]
    result = StepResult(0, ((7, 8), (7, 9), (0,), (7,), (6,)), (), (), 0.0, failures=((2, "no"),), stopped=(1,))
    more = [row(5, 60), row(6, 70, 2)]
    rows = rows_ahead(before, outcomes(result), Ahead((3,), ((0, 4, (17, 18)),)), more)
    assert [(r.slot, r.start, r.token_ids, r.drafts) for r in rows] == [
        (0, 12, (8,), 3), (6, 70, (5,), 2), (4, 51, (6,), 0), (5, 60, (5,), 0),
    ]  # fmt: skip
    assert (rows[0].page_offset, rows[0].new_pages) == (4, (17, 18))
    assert outcomes(result)[2] == (0, 0, True)  # nothing of a failed row stands


def test_a_sequence_goes_on_until_its_last_token_and_gets_pages_on_the_way() -> None:
    scheduler, flight = decoding(2, 6)
    ahead = scheduler.plan_ahead(flight, 0.0)
    assert ahead is not None
    assert ahead.plan.ahead == Ahead((flight.plan.rows[0].slot,), ((flight.plan.rows[1].slot, 1, (2,)),))
    result = answer(flight.plan)
    assert [o.finish for o in scheduler.update(flight, result, 0.0)] == ["length", None]
    following = scheduler.follow(ahead, flight, result)
    assert names(following) == ["r1"]
    assert following.size == Size(rows=1, tokens=1, context=4)


def test_a_stop_token_ends_a_row_before_the_leader_knows() -> None:
    scheduler, flight = decoding(6, 6)
    ahead = scheduler.plan_ahead(flight, 0.0)
    assert ahead is not None
    result = StepResult(flight.plan.step, ((9,), (7,)), ((), ()), (), 0.0, stopped=(0,))
    assert [o.finish for o in scheduler.update(flight, result, 0.0)] == ["stop", None]
    assert names(scheduler.follow(ahead, flight, result)) == ["r1"]


def test_a_sequence_ended_meanwhile_is_skipped() -> None:
    scheduler, flight = decoding(6, 6)
    ahead = scheduler.plan_ahead(flight, 0.0)
    assert ahead is not None
    scheduler.remove("r0")
    result = answer(flight.plan)
    scheduler.update(flight, result, 0.0)
    following = scheduler.follow(ahead, flight, result)
    again = scheduler.plan_ahead(following, 0.0)  # its row runs once more, and no further
    both = StepResult(following.plan.step, ((7,), (7,)), ((), ()), (), 0.0)
    assert [o.request_id for o in scheduler.update(following, both, 0.0)] == ["r1"]
    assert again is not None
    assert again.plan.ahead is not None
    assert again.plan.ahead.ended == (flight.plan.rows[0].slot,)
    assert names(scheduler.follow(again, following, both)) == ["r1"]


def test_arriving_sequences_begin_in_a_step_planned_ahead_if_there_is_room() -> None:
    scheduler, flight = decoding(6)
    scheduler.add(seq("new", 5))
    ahead = scheduler.plan_ahead(flight, 0.0)
    assert ahead is not None
    assert [(r.start, len(r.token_ids)) for r in ahead.plan.rows] == [(0, 5)]
    result = answer(flight.plan)
    scheduler.update(flight, result, 0.0)
    following = scheduler.follow(ahead, flight, result)
    assert names(following) == ["r0", "new"]
    # What comes of a prompt's tokens must be known before the next step.
    assert scheduler.plan_ahead(following, 0.0) is None


def test_no_sequence_is_preempted_before_its_results_are_known() -> None:
    scheduler, flight = decoding(6, limits=replace(ROOMY, slots=1), priority=1)
    scheduler.add(seq("better", 3))
    ahead = scheduler.plan_ahead(flight, 0.0)
    assert ahead is not None
    assert not ahead.plan.rows
    result = answer(flight.plan)
    scheduler.update(flight, result, 0.0)
    following = scheduler.follow(ahead, flight, result)
    assert scheduler.plan_ahead(following, 0.0) is None
    scheduler.update(following, answer(following.plan, going=1), 0.0)
    plan = scheduler.plan(0.0)
    assert names(plan) == ["better"]
    assert scheduler.preempted == 1
