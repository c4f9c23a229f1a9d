"""A queue that decides who is next, with a bounded lane for each priority and tenant. Pure.

Priorities are strict. The tenants of a priority are served by deficit round robin: at each turn a tenant may spend a
fixed number of tokens more. Each tenant so gets its share of tokens, however many and however long its requests are.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
# Tokens that a tenant may spend more at each of its turns.
_QUANTUM = 16_384


@dataclass(slots=True)
class _Lane(Generic[T]):
    """One tenant's requests at one priority. deficit: tokens that it may spend."""

    waiting: dict[T, int] = field(default_factory=dict)  # items in order, each with its tokens
    deficit: int = 0

    @property
    def head(self) -> T:
        """The next item in this lane."""
        return next(iter(self.waiting))

    @property
    def lacks(self) -> bool:
        """Whether its deficit is less than the next item's tokens."""
        return self.deficit < self.waiting[self.head]


class FairQueue(Generic[T]):
    """Holds waiting items in a lane for each priority and tenant. most: items in one lane."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lanes: dict[int, dict[str, _Lane[T]]] = {}
        self._turns: dict[int, deque[_Lane[T]]] = {}  # lanes that are not empty, in order of their turns
        self._where: dict[T, tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, item: T) -> bool:
        return item in self._where

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._where))

    def full(self, priority: int, tenant: str, more: int = 1) -> bool:
        """Whether a lane has no room for so many more items."""
        lane = self._lanes.get(priority, {}).get(tenant)
        return (len(lane.waiting) if lane is not None else 0) + more > self.most

    def backlogged(self, priority: int, tenant: str) -> bool:
        """Whether more waits in a lane behind its first item than a tenant may spend at one turn."""
        lane = self._lanes.get(priority, {}).get(tenant)
        return lane is not None and _tokens(lane) - lane.waiting[lane.head] > _QUANTUM

    def ahead(self, priority: int, tenant: str) -> int:
        """About how many tokens go before a tenant's next item: its own, and as many of each other waiting tenant."""
        sooner = [lane for p, lanes in self._lanes.items() if p < priority for lane in lanes.values()]
        lanes = self._lanes.get(priority, {})
        own = _tokens(lanes[tenant]) if tenant in lanes else 0
        others = sum(min(_tokens(lane), own + _QUANTUM) for name, lane in lanes.items() if name != tenant)
        return sum(map(_tokens, sooner)) + own + others

    def push(self, item: T, priority: int, tenant: str, tokens: int) -> None:
        """Append an item to the lane of its tenant at its priority."""
        lanes = self._lanes.setdefault(priority, {})
        lane = lanes.get(tenant)
        if lane is None:
            lane = lanes[tenant] = _Lane()
            # A tenant whose lane was empty goes first, so that a tenant with few requests hardly notices those with
            # many.
            self._turns.setdefault(priority, deque()).appendleft(lane)
        lane.waiting[item] = tokens
        self._where[item] = priority, tenant

    def take(self, may: Callable[[T], bool]) -> T | None:
        """Take the next item if it may go; no other item overtakes it."""
        if not self._turns:
            return None
        priority = min(self._turns)
        turns = self._turns[priority]
        while turns[0].lacks:
            turns[0].deficit += _QUANTUM
            if turns[0].lacks:
                turns.rotate(-1)
        lane = turns[0]
        item = lane.head
        if not may(item):
            return None
        lane.deficit -= lane.waiting[item]
        self._remove(item)
        if lane.waiting and lane.lacks:
            turns.rotate(-1)
        return item

    def discard(self, item: T) -> None:
        """Remove an item; harmless if it does not wait."""
        if item in self._where:
            self._remove(item)

    def _remove(self, item: T) -> None:
        priority, tenant = self._where.pop(item)
        lane = self._lanes[priority][tenant]
        del lane.waiting[item]
        if not lane.waiting:  # its unspent deficit is lost
            del self._lanes[priority][tenant]
            self._turns[priority].remove(lane)
            if not self._turns[priority]:
                del self._turns[priority], self._lanes[priority]


def _tokens(lane: _Lane[T]) -> int:
    return sum(lane.waiting.values())
