"""Tests hand-offs without sockets: the test carries actions between two workers' schedulers."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
from msgspec import structs

from tests.workers.test_scheduler import LIMITS, answer, seq
from wire.protocol import CancelPull, Header, Pull, PullRefused, RankInfo, Role, SeqOutput, WorkerInfo
from workers.cache.budget import Budget
from workers.leader.actions import Action, Add, Arrived, Ended, Failed, ToPeer, ToPuller
from workers.leader.handoffs import HandOffs
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence, Source
from workers.schedule.step import StepPlan, Unlink

KEEPING = replace(LIMITS, cache=Budget(device_states=2))
RANKS = tuple(RankInfo(rank, 1, "node", "cpu", "host", 9000 + rank) for rank in range(2))


def info(name: str, role: Role) -> WorkerInfo:
    return WorkerInfo(name, role, "host", 1, "node", 1, "weights", "layout", 256, 4, 12, 4, 32, RANKS)


@dataclass(eq=False)
class Connection:
    name: str

    def tell(self, message: Header | PullRefused, /) -> None:
        raise AssertionError("only a leader performs actions")


class Worker:
    def __init__(self, name: str, role: Role) -> None:
        self.info = info(name, role)
        self.scheduler = Scheduler(KEEPING)
        self.handoffs = HandOffs(self.scheduler, self.info, timeout_s=5.0)

    def add(self, sequence: Sequence) -> None:
        self.scheduler.add(sequence)
        assert self.handoffs.giving.added(sequence) == []

    def step(self, now: float = 0.0) -> tuple[StepPlan, list[SeqOutput], list[Action]]:
        flight = self.scheduler.plan(now)
        actions = self.handoffs.taking.planned(flight.plan, now)
        outputs = self.scheduler.update(flight, answer(flight.plan), now)
        return flight.plan, outputs, actions + self.handoffs.giving.stepped(outputs, flight.plan.exports, now)


class Pair:
    """A prefill worker and a decode worker that is connected to it."""

    def __init__(self) -> None:
        self.prefill, self.decode = Worker("p", "prefill"), Worker("d", "decode")
        self.connection = Connection("d")
        self.prefill.handoffs.giving.puller_joined(self.connection)
        self.decode.handoffs.taking.linked(self.prefill.info)

    def to_prefill(self, actions: Iterable[Action]) -> list[Action]:
        answers: list[Action] = []
        for action in actions:
            assert isinstance(action, ToPeer)
            assert action.worker_id == "p"
            if isinstance(action.message, Pull):
                answers += self.prefill.handoffs.giving.asked(self.connection, action.message, 0.0)
            else:
                answers += self.prefill.handoffs.giving.cancelled(action.message.request_id)
        return answers

    def to_decode(self, actions: Iterable[Action], now: float = 0.0) -> list[Action]:
        answers: list[Action] = []
        for action in actions:
            assert isinstance(action, ToPuller)
            assert action.puller is self.connection
            answers += self.decode.handoffs.taking.told("p", action.message, now)
        return answers

    def start_pull(self) -> list[Action]:
        """Submit a request to both workers; returns the prefill worker's answer to the decode worker's pull."""
        self.prefill.add(seq("r", 5, handoff=True))
        self.decode.add(seq("r", 5, source="p"))
        return self.to_prefill(self.decode.step()[2])


@pytest.fixture
def pair() -> Pair:
    return Pair()


def ended(actions: Iterable[Action]) -> list[SeqOutput]:
    return [action.output for action in actions if isinstance(action, Ended)]


@pytest.mark.parametrize("header_first", [True, False])
def test_a_snapshot_is_whole_when_its_header_and_every_rank_s_part_have_come(pair: Pair, header_first: bool) -> None:
    assert pair.start_pull() == []  # the prompt is not computed yet: there is no header to send
    plan, outputs, actions = pair.prefill.step(1.0)
    assert [e.request_id for e in plan.exports] == ["r"]
    assert outputs[0].token_ids == (7,)
    decode = pair.decode.handoffs.taking
    if header_first:
        assert pair.to_decode(actions, 2.0) == []
        assert decode.received("r", 0, 3.0) == []
        assert decode.received("r", 1, 4.0) == [Arrived(2.0)]
    else:
        assert decode.received("r", 1, 1.0) + decode.received("r", 0, 1.0) == []
        assert pair.to_decode(actions, 2.0) == [Arrived(0.0)]
    assert list(pair.decode.scheduler.sequences["r"].tokens) == [0, 1, 2, 3, 4, 7]
    assert pair.decode.step()[0].rows[0].start == 5


def test_a_handed_off_request_ends_once_every_rank_has_sent_its_part(pair: Pair) -> None:
    pair.start_pull()
    pair.prefill.step()
    assert pair.prefill.handoffs.giving.sent("r", 0, 1.0) == []
    assert pair.prefill.handoffs.giving.sent("r", 0, 1.0) == []  # the same rank again is not another
    (output,) = ended(pair.prefill.handoffs.giving.sent("r", 1, 2.0))
    assert output.finish == "handoff"
    assert not pair.prefill.scheduler.sequences


def test_a_snapshot_may_have_left_before_its_step_is_committed(pair: Pair) -> None:
    pair.start_pull()
    flight = pair.prefill.scheduler.plan(0.0)
    assert pair.prefill.handoffs.giving.sent("r", 0, 0.5) + pair.prefill.handoffs.giving.sent("r", 1, 0.5) == []
    outputs = pair.prefill.scheduler.update(flight, answer(flight.plan), 1.0)
    actions = pair.prefill.handoffs.giving.stepped(outputs, flight.plan.exports, 1.0)
    assert [type(a) for a in actions] == [ToPuller, Ended]
    assert ended(actions)[0].finish == "handoff"
    assert not pair.prefill.scheduler.sequences


def test_a_decode_worker_may_ask_before_the_request_is_at_its_prefill_worker(pair: Pair) -> None:
    pair.decode.add(seq("r", 5, source="p"))
    assert pair.to_prefill(pair.decode.step()[2]) == []
    pair.prefill.add(seq("r", 5, handoff=True))
    plan, _, actions = pair.prefill.step()
    assert plan.exports[0].peer == "d"
    assert [type(a) for a in actions] == [ToPuller]


def test_a_pull_of_a_request_that_never_comes_is_refused_in_time(pair: Pair) -> None:
    pair.decode.add(seq("r", 5, source="p"))
    pair.to_prefill(pair.decode.step()[2])
    assert pair.prefill.handoffs.overdue(5.0) == []
    refused = pair.prefill.handoffs.overdue(5.1)
    assert refused == [ToPuller(pair.connection, PullRefused("r", "its prefill worker never got the request", False))]
    assert pair.prefill.handoffs.overdue(9.0) == []
    failed, *_, end = pair.to_decode(refused)
    assert failed == Failed("refused")
    assert ended([end])[0].retry
    assert not pair.decode.scheduler.sequences


def test_a_snapshot_that_nobody_pulls_ends_its_request_in_time(pair: Pair) -> None:
    pair.prefill.add(seq("r", 5, handoff=True))
    pair.prefill.step(1.0)
    failed, *_, end = pair.prefill.handoffs.overdue(1.1 + KEEPING.hold_s)
    assert failed == Failed("timeout")
    assert ended([end])[0].retry


def test_a_request_that_ends_with_its_first_token_is_called_off_at_its_puller(pair: Pair) -> None:
    pair.prefill.add(seq("r", 5, new=1, handoff=True))
    pair.decode.add(seq("r", 5, source="p"))
    pair.to_prefill(pair.decode.step()[2])
    _, outputs, actions = pair.prefill.step()
    assert outputs[0].finish == "length"
    (end,) = ended(pair.to_decode(actions))
    assert end.finish == "abort"
    assert not pair.decode.scheduler.sequences


def test_an_aborted_request_is_freed_at_both_workers(pair: Pair) -> None:
    pair.start_pull()
    cancelled = pair.decode.handoffs.endings.drop("r")
    assert cancelled == [ToPeer("p", CancelPull("r", False))]
    assert pair.to_prefill(cancelled) == []
    assert not pair.prefill.scheduler.sequences
    assert not pair.decode.scheduler.sequences

    pair.start_pull()
    (end,) = ended(pair.to_decode(pair.prefill.handoffs.endings.drop("r")))
    assert end.finish == "abort"
    assert not end.retry
    assert not pair.prefill.scheduler.sequences
    assert not pair.decode.scheduler.sequences


@pytest.mark.parametrize("field", ["position", "token_hash", "layout", "weights_id", "generated"])
def test_a_snapshot_that_does_not_match_is_refused(pair: Pair, field: str) -> None:
    pair.start_pull()
    (to,) = pair.prefill.step()[2]
    assert isinstance(to, ToPuller)
    assert isinstance(to.message, Header)
    other = {"position": 4, "token_hash": "00", "layout": "other", "weights_id": "other", "generated": ()}
    wrong = structs.replace(to.message, **{field: other[field]})  # type: ignore[arg-type]
    failed, cancel, end = pair.decode.handoffs.taking.told("p", wrong, 0.0)
    assert failed == Failed("mismatch")
    assert cancel == ToPeer("p", CancelPull("r", False))
    (output,) = ended([end])
    assert output.retry
    assert "snapshot from p refused" in (output.error or "")
    assert pair.decode.handoffs.taking.received("r", 0, 0.0) == []  # what comes late is nobody's


def test_a_lost_puller_fails_what_it_was_to_get_unless_it_has_another_connection(pair: Pair) -> None:
    pair.start_pull()
    newer = Connection("d")
    pair.prefill.handoffs.giving.puller_joined(newer)
    assert pair.prefill.handoffs.giving.puller_left(pair.connection, 0.0) == []
    failed, *_, end = pair.prefill.handoffs.giving.puller_left(newer, 0.0)
    assert failed == Failed("peer")
    assert ended([end])[0].retry


def test_a_lost_peer_fails_what_was_to_come_from_it_and_its_ranks_are_forgotten(pair: Pair) -> None:
    pair.start_pull()
    linked = pair.decode.handoffs.taking.with_links(StepPlan(0))
    assert linked.links[0].endpoints == (("host", 9000), ("host", 9001))
    assert pair.decode.handoffs.taking.with_links(StepPlan(1)).empty
    failed, *_, end = pair.decode.handoffs.taking.peer_lost("p", "prefill worker p closed its connection", 0.0)
    assert failed == Failed("peer")
    assert ended([end])[0].retry
    assert pair.decode.handoffs.taking.with_links(StepPlan(2)).unlinks == (Unlink("p"),)


def test_a_peer_lost_after_the_request_was_queued_fails_it_when_it_is_planned(pair: Pair) -> None:
    pair.decode.add(seq("r", 5, source="p"))
    flight = pair.decode.scheduler.plan(0.0)
    pair.decode.handoffs.taking.peer_lost("q", "another one", 0.0)
    alone = HandOffs(pair.decode.scheduler, pair.decode.info, 5.0)
    failed, *_, end = alone.taking.planned(flight.plan, 0.0)
    assert failed == Failed("peer")
    assert ended([end])[0].error == "prefill worker p went away"


def test_a_broken_link_fails_the_snapshots_that_were_on_it(pair: Pair) -> None:
    pair.start_pull()
    failed, cancel, end = pair.decode.handoffs.link_lost("p", ["r", "unknown"], "reset", 0.0, leaving=False)
    assert failed == Failed("link")
    assert isinstance(cancel, ToPeer)
    assert ended([end])[0].error == "the transfer link to p broke: reset"


def keep(worker: Worker, name: str, length: int) -> Pull:
    """Compute and keep a prompt; returns the pull of a peer that has none of it."""
    worker.add(seq(name, length, new=1))
    while worker.scheduler.sequences:
        worker.step()
    kept = max(worker.scheduler.cache.index, key=lambda k: k.position)
    return Pull("r", 0, kept.position, kept.digest)


def test_a_kept_snapshot_leaves_memory_once_every_rank_has_sent_its_part(pair: Pair) -> None:
    holder = pair.prefill
    pull = keep(holder, "old", 5)
    (header,) = holder.handoffs.giving.asked(pair.connection, pull, 0.0)
    assert isinstance(header, ToPuller)
    assert isinstance(header.message, Header)
    assert [e.request_id for e in holder.step()[0].exports] == ["r"]
    lending = holder.scheduler.keeping.lending
    assert list(lending.leaving) == [pull.position]
    assert holder.handoffs.giving.sent("r", 0, 0.0) == []
    assert list(lending.leaving) == [pull.position]
    assert holder.handoffs.giving.sent("r", 1, 0.0) == []
    assert list(lending.leaving) == []


@pytest.mark.parametrize("how", ["given up", "puller left", "peer lost"])
def test_a_lent_snapshot_that_no_peer_takes_is_freed_without_harm(pair: Pair, how: str) -> None:
    holder = pair.prefill
    holder.handoffs.giving.asked(pair.connection, keep(holder, "old", 5), 0.0)
    holder.step()
    # The same request is answered here, once its prompt is computed by the puller: that goes on.
    holder.add(seq("r", 5, source="d"))
    holder.handoffs.taking.linked(pair.decode.info)
    holder.step()
    if how == "given up":
        assert holder.handoffs.link_lost("d", ["r"], "d gave it up", 0.0, leaving=True) == []
    elif how == "puller left":
        assert holder.handoffs.giving.puller_left(pair.connection, 0.0) == []
    else:
        assert next(iter(holder.handoffs.taking.peer_lost("d", "closed", 0.0))) == Failed("peer")
    assert list(holder.scheduler.keeping.lending.leaving) == []
    assert ("r" in holder.scheduler.sequences) == (how != "peer lost")


def test_damage_in_host_memory_is_reported_to_waiting_peers(pair: Pair) -> None:
    holder = pair.prefill
    holder.handoffs.giving.asked(pair.connection, keep(holder, "old", 5), 0.0)
    holder.step()
    (refused,) = holder.handoffs.fetch_failed("r", "d")
    assert isinstance(refused, ToPuller)
    assert refused.message == PullRefused("r", "its copy below the device is damaged", told=False)
    assert holder.handoffs.fetch_failed("r", "d") == []  # the other rank's part was damaged too
    assert list(holder.scheduler.keeping.lending.leaving) == []


def test_a_request_that_is_computed_here_by_now_does_not_end_with_the_second_link_that_breaks(pair: Pair) -> None:
    taker = pair.decode
    request = seq("r", 5)
    request.source = Source("p", 4, kept=True)
    taker.add(request)
    taker.step()
    for rank in range(2):
        actions = taker.handoffs.link_lost("p", ["r"], f"rank {rank}", 0.0, leaving=False)
        assert ended(actions) == []
    assert taker.step()[0].rows[0].start == 0


def test_a_request_waits_for_its_peer_to_be_connected() -> None:
    worker = Worker("d", "decode").handoffs
    first, second = seq("a", 5, source="p"), seq("b", 5, source="p")
    assert worker.taking.must_connect(first)
    assert worker.taking.must_connect(second)
    assert "a" in worker
    assert not worker.idle
    worker.endings.drop("b")
    assert worker.taking.joined(second, None) == []  # given up meanwhile
    assert worker.taking.joined(first, None) == [Add(first)]
    assert worker.idle
    worker.taking.linked(info("p", "prefill"))
    assert not worker.taking.must_connect(seq("c", 5, source="p"))
    assert not worker.taking.must_connect(seq("e", 5))


def test_a_peer_that_cannot_be_connected_ends_a_hand_off_and_costs_a_kept_snapshot_alone() -> None:
    worker = Worker("d", "decode").handoffs
    handed, kept = seq("a", 5, source="p"), seq("b", 5)
    kept.source = Source("p", 4, kept=True)
    assert worker.taking.must_connect(handed)
    assert worker.taking.must_connect(kept)
    failed, *_, end = worker.taking.joined(handed, "p can't be reached")
    assert failed == Failed("peer")
    assert ended([end])[0].retry
    assert worker.taking.joined(kept, "p can't be reached") == [Failed("peer"), Add(kept)]
    assert kept.source is None
    assert kept.missed == "peer"
    other = seq("c", 5)
    other.source = Source("p", 4, kept=True)
    assert worker.taking.must_connect(other)
    assert worker.taking.joined(other, "weights_id of p is v", mismatch=True) == [Failed("mismatch"), Add(other)]
    assert other.missed == "weights"


@pytest.mark.parametrize(
    ("wrong", "missed"),
    [({"weights_id": "v"}, "weights"), ({"layout": "l"}, "weights"), ({"position": 3}, "peer"), ({}, None)],
)
def test_a_kept_snapshot_with_another_header_is_computed_instead(
    pair: Pair, wrong: dict[str, object], missed: str | None
) -> None:
    pull = keep(pair.prefill, "old", 5)
    asking = seq("r", 5)
    asking.source = Source("p", pull.position, kept=True)
    pair.decode.add(asking)
    *_, actions = pair.decode.step()
    (told,) = pair.to_prefill(actions)
    assert isinstance(told, ToPuller)
    assert isinstance(told.message, Header)
    actions = pair.decode.handoffs.taking.told("p", structs.replace(told.message, **wrong), 0.0)  # type: ignore[arg-type]
    assert actions[:1] == ([Failed("mismatch")] if missed else [])
    assert asking.missed == missed
    assert (asking.source is None) == (missed is not None)


def test_a_kept_snapshot_that_is_gone_is_computed_instead(pair: Pair) -> None:
    wanted = seq("r", 9)
    wanted.source = Source("p", 4, kept=True)
    pair.decode.add(wanted)
    refused: list[Action] = [
        action
        for ask in pair.decode.step()[2]
        if isinstance(ask, ToPeer) and isinstance(ask.message, Pull)
        for action in pair.prefill.handoffs.giving.asked(pair.connection, ask.message, 0.0)
    ]
    assert [type(a.message) for a in refused if isinstance(a, ToPuller)] == [PullRefused]
    assert pair.to_decode(refused)[0] == Failed("refused")
    assert pair.decode.step()[0].rows[0].start == 0
    assert pair.decode.scheduler.sequences["r"].missed == "peer"


def test_a_pull_that_a_snapshot_cannot_answer_is_refused_with_the_reason(pair: Pair) -> None:
    handoffs = pair.prefill.handoffs
    assert handoffs.giving.asked(pair.connection, Pull("r"), 0.0) == []
    pair.prefill.scheduler.add(seq("r", 5))  # to be answered here
    (refused,) = handoffs.giving.added(pair.prefill.scheduler.sequences["r"])
    assert isinstance(refused, ToPuller)
    assert isinstance(refused.message, PullRefused)
    assert "answered here" in refused.message.reason
    assert handoffs.giving.asked(pair.connection, Pull("r"), 0.0) == [refused]
