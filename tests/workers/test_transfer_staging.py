"""Tests the bookkeeping of both ends of a transfer, with messages delivered in any order across links."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.transfer.outbox import Outbox
from workers.transfer.staging import Inbox, PartError, Span

pytestmark = pytest.mark.process

Part = tuple[str, Span]
ROW = (2, 8, "bfloat16")


class Handoffs(RuleBasedStateMachine):
    """One sender, one receiver, links that come and go; each direction of a link is a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox: Outbox[str, Part] = Outbox(patience=100.0)
        self.inbox: Inbox[Part] = Inbox()
        self.link = 0
        self.up = False
        self.to_sender: deque[tuple[str, str, int]] = deque()
        self.to_receiver: deque[tuple[int, Part]] = deque()
        self.tokens: dict[str, int] = {}
        self.exported: dict[str, int] = {}
        self.done_sending: set[str] = set()
        self.expected: set[str] = set()
        self.whole: set[str] = set()
        self.ended: set[str] = set()  # taken, discarded or lost
        self.sent: list[str] = []
        self.received: list[str] = []
        self.lost_here: set[str] = set()

    @precondition(lambda self: not self.up)
    @rule()
    def connect(self) -> None:
        self.link += 1
        self.up = True
        self.outbox.open(self.link, "D")
        for serial, request_id in self.inbox.awaited("P"):
            self.to_sender.append(("want", request_id, serial))

    @precondition(lambda self: self.up)
    @rule()
    def break_link(self) -> None:
        self.up = False
        self.to_sender.clear()
        self.to_receiver.clear()
        self.lost_here |= set(self.outbox.close(self.link))
        lost = set(self.inbox.lose("P"))
        assert lost == self.expected - self.whole - self.ended
        self.ended |= lost

    @rule(tokens=st.integers(1, 6))
    def new_request(self, tokens: int) -> None:
        if len(self.tokens) < 12:
            self.tokens[f"r{len(self.tokens)}"] = tokens

    @precondition(lambda self: set(self.tokens) - self.expected)
    @rule(data=st.data())
    def expect(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(set(self.tokens) - self.expected)))
        serial = self.inbox.expect(request_id, "P", self.tokens[request_id])
        self.expected.add(request_id)
        if self.up:
            self.to_sender.append(("want", request_id, serial))

    @precondition(lambda self: set(self.tokens) - self.done_sending)
    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(set(self.tokens) - self.done_sending)))
        if request_id in self.lost_here:
            return
        start = self.exported.get(request_id, 0)
        stop = data.draw(st.integers(start + 1, self.tokens[request_id]))
        last = stop == self.tokens[request_id]
        self.outbox.put(request_id, "D", (request_id, Span(start, stop, last, ROW)), last, now=0.0)
        self.exported[request_id] = stop
        if last:
            self.done_sending.add(request_id)

    @precondition(lambda self: self.up)
    @rule()
    def send(self) -> None:
        due = self.outbox.next(self.link, now=0.0)
        if due is not None:
            self.to_receiver.append(due)

    @precondition(lambda self: self.to_sender)
    @rule()
    def sender_reads(self) -> None:
        kind, request_id, serial = self.to_sender.popleft()
        if kind == "want":
            self.outbox.want(self.link, request_id, serial, now=0.0)
        elif kind == "unwant":
            given_up = self.outbox.unwant(self.link, serial)
            assert given_up in (None, request_id)
            if given_up:
                self.lost_here.add(given_up)
        else:
            acknowledged = self.outbox.acknowledged(self.link, serial)
            assert acknowledged in (None, request_id)
            if acknowledged:
                self.sent.append(acknowledged)

    @precondition(lambda self: self.to_receiver)
    @rule()
    def receiver_reads(self) -> None:
        serial, part = self.to_receiver.popleft()
        request_id, span = part
        wanted = self.inbox.begin(serial, "P", span)
        assert wanted == (request_id not in self.ended)
        if wanted and self.inbox.finish(serial, span, part, part if span.last else None):
            self.received.append(request_id)
            self.whole.add(request_id)
            self.to_sender.append(("whole", request_id, serial))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.tokens)))
        asked = self.inbox.discard(request_id)
        live = request_id in self.expected and request_id not in self.ended
        assert (asked is not None) == (live and request_id not in self.whole)
        if live:
            self.ended.add(request_id)
        if asked and self.up:
            self.to_sender.append(("unwant", request_id, asked[1]))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def sender_discards(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.tokens)))
        self.outbox.discard(request_id)
        self.lost_here.add(request_id)
        self.done_sending.add(request_id)

    @precondition(lambda self: self.whole - self.ended)
    @rule()
    def take(self) -> None:
        request_id = min(self.whole - self.ended)
        peer, (share,) = self.inbox.take(request_id)
        assert (peer, share.skip) == ("P", 0)
        self.ended.add(request_id)
        at = 0
        for count, (owner, span) in share.parts:
            assert owner == request_id
            assert (span.start, span.stop) == (at, at + count)
            at = span.stop
        assert at == self.tokens[request_id]
        assert share.state is not None
        assert share.state[1].last

    @invariant()
    def nothing_is_held_for_the_past(self) -> None:
        assert len(self.inbox) == len(self.expected - self.ended)
        assert len(self.received) == len(set(self.received))
        assert len(self.sent) == len(set(self.sent))
        assert set(self.sent) <= set(self.received)

    def teardown(self) -> None:
        if not self.up:
            self.connect()
        moved = True
        while moved:
            moved = bool(self.to_sender or self.to_receiver)
            while self.to_sender:
                self.sender_reads()
            while self.to_receiver:
                self.receiver_reads()
            while (due := self.outbox.next(self.link, now=0.0)) is not None:
                self.to_receiver.append(due)
                moved = True
        # With every message delivered, all that was wholly exported and awaited has come.
        for request_id in self.done_sending - self.lost_here:
            if request_id in self.expected and request_id not in self.ended:
                assert request_id in self.whole
        for request_id in self.expected - self.ended:
            asked = self.inbox.discard(request_id)
            if asked:
                self.outbox.unwant(self.link, asked[1])
        assert len(self.inbox) == 0
        assert not set(self.outbox.close(self.link)) & set(self.sent)
        self.outbox.overdue(now=101.0)
        assert len(self.outbox) == 0


TestHandoffs = Handoffs.TestCase
TestHandoffs.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


def taken(inbox: Inbox[str], request_id: str) -> tuple[list[tuple[int, str]], str | None, int]:
    _, (share,) = inbox.take(request_id)
    return share.parts, share.state, share.skip


def expecting(tokens: int) -> tuple[Inbox[str], int]:
    inbox: Inbox[str] = Inbox()
    serial = inbox.expect("r", "P", tokens)
    assert inbox.begin(serial, "P", Span(0, 4, False, ROW))
    assert inbox.finish(serial, Span(0, 4, False, ROW), "a", None) is None
    return inbox, serial


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (Span(0, 4, False, ROW), "from 4 on was due"),
        (Span(3, 6, False, ROW), "from 4 on was due"),
        (Span(5, 6, False, ROW), "from 4 on was due"),
        (Span(4, 9, False, ROW), "not within the 8 tokens"),
        (Span(4, 3, False, ROW), "not within"),
        (Span(4, 4, False, ROW), "not within"),
        (Span(4, 6, True, ROW), "state after 6 of 8"),
        (Span(4, 8, True, (2, 9, "bfloat16")), "earlier ones had"),
    ],
)
def test_a_part_that_does_not_belong(span: Span, reason: str) -> None:
    inbox, serial = expecting(8)
    with pytest.raises(PartError, match=reason):
        inbox.begin(serial, "P", span)


def test_a_part_after_the_last() -> None:
    inbox, serial = expecting(4)
    last = Span(4, 4, True, ROW)  # the state alone
    assert inbox.begin(serial, "P", last)
    assert inbox.finish(serial, last, "nothing", "state") == "r"
    with pytest.raises(PartError, match="after the last"):
        inbox.begin(serial, "P", last)
    assert taken(inbox, "r") == ([(4, "a")], "state", 0)
    assert not inbox.begin(serial, "P", last)
    with pytest.raises(KeyError, match="not wholly come"):
        inbox.take("r")


@pytest.mark.parametrize(("start", "skip"), [(0, 5), (3, 2), (5, 0)])
def test_a_first_part_may_begin_before_what_was_asked_for(start: int, skip: int) -> None:
    inbox: Inbox[str] = Inbox()
    serial = inbox.expect("r", "P", 8, start=5)
    with pytest.raises(PartError, match="from 5 on was due"):
        inbox.begin(serial, "P", Span(6, 8, True, ROW))
    first, last = Span(start, 6, False, ROW), Span(6, 8, True, ROW)
    assert inbox.begin(serial, "P", first)
    assert inbox.finish(serial, first, "a", None) is None
    with pytest.raises(PartError, match="from 6 on was due"):
        inbox.begin(serial, "P", Span(5, 8, True, ROW))
    assert inbox.begin(serial, "P", last)
    assert inbox.finish(serial, last, "b", "state") == "r"
    assert taken(inbox, "r") == ([(6 - start, "a"), (2, "b")], "state", skip)


def test_a_snapshot_of_two_ranks_is_whole_once_both_shares_are() -> None:
    inbox: Inbox[str] = Inbox()
    serial = inbox.expect("r", "P", 4, shares=2)
    first, last = Span(0, 3, False, ROW), Span(3, 4, True, ROW)
    for at, part in ((1, first), (1, last), (0, first)):
        assert inbox.begin(serial, "P", part, at)
        assert inbox.finish(serial, part, f"{at}{part.start}", f"state {at}" if part.last else None, at) is None
    with pytest.raises(PartError, match="after the last"):
        inbox.begin(serial, "P", last, 1)
    assert inbox.awaited("P") == [(serial, "r")]
    assert inbox.finish(serial, last, "03", "state 0", 0) == "r"
    _, shares = inbox.take("r")
    assert [(share.parts, share.state) for share in shares] == [
        ([(3, "00"), (1, "03")], "state 0"), ([(3, "10"), (1, "13")], "state 1"),
    ]  # fmt: skip
    assert not inbox.begin(serial, "P", last, 0)


def test_another_peer_can_not_answer() -> None:
    inbox, serial = expecting(8)
    assert not inbox.begin(serial, "Q", Span(4, 8, True, ROW))


def test_an_id_can_be_expected_anew_once_given_up() -> None:
    inbox, serial = expecting(8)
    with pytest.raises(ValueError, match="expected already"):
        inbox.expect("r", "P", 8)
    assert inbox.discard("r") == ("P", serial)
    assert inbox.discard("r") is None
    again = inbox.expect("r", "P", 8)
    assert not inbox.begin(serial, "P", Span(4, 8, True, ROW))  # still in flight from before
    assert inbox.begin(again, "P", Span(0, 8, True, ROW))


def test_parts_given_up_while_they_come_are_not_kept() -> None:
    inbox, serial = expecting(8)
    last = Span(4, 8, True, ROW)
    assert inbox.begin(serial, "P", last)
    inbox.discard("r")
    assert inbox.finish(serial, last, "b", "state") is None
    assert len(inbox) == 0


def test_whole_snapshots_outlive_their_link() -> None:
    inbox: Inbox[str] = Inbox()
    for request_id in ("whole", "half"):
        serial = inbox.expect(request_id, "P", 2)
        if request_id == "whole":
            inbox.finish(serial, Span(0, 2, True, ROW), "a", "s")
    assert inbox.lose("P") == ("half",)
    assert taken(inbox, "whole") == ([(2, "a")], "s", 0)


def test_overdue_names_snapshots_that_no_peer_asked_for_or_acknowledged() -> None:
    outbox: Outbox[str, str] = Outbox(patience=30.0)
    outbox.open(1, "D")
    outbox.put("unasked", "E", "part", True, now=0.0)
    outbox.put("unacknowledged", "D", "part", True, now=0.0)
    outbox.put("slow", "D", "part", False, now=0.0)  # its prompt is still being computed
    outbox.want(1, "unacknowledged", 7, now=0.0)
    outbox.want(1, "slow", 8, now=0.0)
    outbox.want(1, "not yet here", 9, now=0.0)
    assert outbox.next(1, now=10.0) == (7, "part")
    assert outbox.next(1, now=10.0) == (8, "part")
    assert outbox.next(1, now=10.0) is None
    assert outbox.overdue(now=31.0) == {"E": ("unasked",)}
    assert outbox.overdue(now=41.0) == {"D": ("unacknowledged",)}
    assert outbox.overdue(now=1e9) == {}
    assert outbox.close(1) == ("slow",)
    assert len(outbox) == 0


def test_parts_leave_in_the_order_they_may() -> None:
    outbox: Outbox[str, str] = Outbox(patience=30.0)
    outbox.open(1, "D")
    outbox.put("a", "D", "a0", False, now=0.0)
    outbox.put("b", "D", "b0", False, now=0.0)
    outbox.want(1, "b", 0, now=0.0)
    outbox.want(1, "a", 1, now=0.0)
    outbox.put("b", "D", "b1", True, now=0.0)
    outbox.put("a", "D", "a1", True, now=0.0)
    left = [outbox.next(1, now=0.0) for _ in range(5)]
    assert left == [(0, "b0"), (1, "a0"), (0, "b1"), (1, "a1"), None]
    outbox.discard("a")
    assert outbox.acknowledged(1, 1) is None
    assert outbox.acknowledged(1, 0) == "b"
    outbox.put("c", "D", "c0", False, now=0.0)
    outbox.drop("D")
    assert len(outbox) == 0
