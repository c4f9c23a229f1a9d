"""Tests the queue in which tenants take turns."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.relay.fair import FairQueue


def drain(queue: FairQueue[int]) -> list[int]:
    out = []
    while (item := queue.take(lambda item: True)) is not None:
        out.append(item)
    return out


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(1, 20_000)), max_size=30))
def test_every_item_comes_out_once_by_priority_and_in_order_within_its_lane(asks: list[tuple[int, str, int]]) -> None:
    queue: FairQueue[int] = FairQueue(100)
    for number, (priority, tenant, tokens) in enumerate(asks):
        queue.push(number, priority, tenant, tokens)
    out = drain(queue)
    assert sorted(out) == list(range(len(asks)))
    assert [asks[n][0] for n in out] == sorted(asks[n][0] for n in out)
    for lane in {ask[:2] for ask in asks}:
        own = [n for n in out if asks[n][:2] == lane]
        assert own == sorted(own)
    assert not len(queue)


@given(st.lists(st.integers(1, 9_000), min_size=30, max_size=60), st.lists(st.integers(1, 9_000), min_size=30))
def test_tenants_get_equal_shares_of_tokens(first: list[int], second: list[int]) -> None:
    """While both wait, neither gets ahead of the other by more than a turn and one longest request."""
    queue: FairQueue[int] = FairQueue(10_000)
    tokens = [*first, *second]
    for number, count in enumerate(tokens):
        queue.push(number, 0, "a" if number < len(first) else "b", count)
    served: Counter[str] = Counter()
    left = {"a": len(first), "b": len(second)}
    for number in drain(queue):
        tenant = "a" if number < len(first) else "b"
        served[tenant] += tokens[number]
        left[tenant] -= 1
        if all(left.values()):
            assert abs(served["a"] - served["b"]) <= 2 * (16_384 + 9_000)


def test_a_request_that_may_not_go_is_not_overtaken() -> None:
    queue: FairQueue[int] = FairQueue(10)
    queue.push(1, 0, "a", 10)
    queue.push(2, 5, "b", 10)
    assert queue.take(lambda item: item == 2) is None
    assert queue.take(lambda item: item == 1) == 1
    assert drain(queue) == [2]


def test_lanes_are_bounded_each_by_itself() -> None:
    queue: FairQueue[int] = FairQueue(2)
    for number in (1, 2):
        queue.push(number, 0, "a", 10)
    assert (queue.full(0, "a"), queue.full(0, "b"), queue.full(1, "a")) == (True, False, False)
    queue.discard(1)
    queue.discard(1)
    assert not queue.full(0, "a")
    assert drain(queue) == [2]


def test_the_work_ahead_is_the_tenant_s_own_and_as_much_of_others() -> None:
    queue: FairQueue[int] = FairQueue(1_000)
    for number in range(100):
        queue.push(number, 0, "flood", 1_000)
    assert queue.ahead(0, "flood") == 100_000
    assert queue.ahead(0, "calm") == 16_384
    assert queue.ahead(-1, "calm") == 0
    assert queue.ahead(1, "calm") == 100_000


def test_a_lane_is_backlogged_where_more_than_a_turn_waits_behind_its_first() -> None:
    queue: FairQueue[str] = FairQueue(10)
    assert not queue.backlogged(0, "t")
    for name, tokens in (("long", 100_000), ("a", 16_000), ("b", 384)):
        queue.push(name, 0, "t", tokens)
        assert not queue.backlogged(0, "t")
    queue.push("c", 0, "t", 1)
    assert queue.backlogged(0, "t")
    assert not queue.backlogged(1, "t")
