"""Simulates a prefix cache under a workload. It stores shared latents once, as `workers.cache.host` does."""

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.prefixes.workload import Ask, Path_, Segment, cut
from workers.cache.kept import Kept
from workers.cache.points import keep_points

STATE_BYTES = 56 << 20  # fp32: 28 layers, 32 heads, 128 x 128
TOKEN_BYTES = 4_608  # bf16: 4 layers, 576 values
PAGE = 64
# The value of a kept snapshot: the one with the least is evicted first. Values of different times are comparable.
Score = Callable[["Node"], float]
# Returns the positions of a prompt at which states are kept. Arguments: the request, the position it begins from, and
# the position at which another prompt went on differently, if one did.
Points = Callable[[Ask, int, int | None], Iterable[int]]


@dataclass(slots=True, eq=False)
class Node:
    """A kept snapshot. uses: the future times at which a prompt begins from it, the next one last, if known."""

    kept: Kept
    path: Path_
    size: int = 0
    score: float = 0.0
    children: int = 0
    uses: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int]:
        """The name of its tokens: last segment and position."""
        return self.path[-1].name, self.kept.position


def ours(node: Node) -> float:
    """This engine's score: `Kept.value` per byte. All age equally, so the order of two never changes by itself."""
    kept = node.kept
    return math.log2(max(kept.value(kept.used), 1e-9) / node.size) + kept.used / 60.0


def lru(node: Node) -> float:
    """Evict the least recently used first."""
    return node.kept.used


def marconi(node: Node) -> float:
    """Add recency, in minutes, and tokens saved per byte, as Marconi does, with a weight of one."""
    return node.kept.used / 60.0 + node.kept.saved_tokens * TOKEN_BYTES * 8 / node.size


def farthest(node: Node) -> float:
    """Evict first what is used again last, or never. It knows the future."""
    return -node.uses[-1] if node.uses else -math.inf


def all_points(ask: Ask, begin: int, branch: int | None) -> list[int]:
    """Keep states where this engine keeps them."""
    return keep_points(ask.boundaries, ask.tokens, begin, PAGE, branch)


def turn_ends(ask: Ask, begin: int, branch: int | None) -> list[int]:
    """Keep a state only at the prompt's end."""
    return [ask.tokens - 1]


def branches(ask: Ask, begin: int, branch: int | None) -> list[int]:
    """Keep a state where a second prompt went on differently, as Marconi does."""
    return [branch] if branch is not None else []


def grid(ask: Ask, begin: int, branch: int | None) -> range:
    """Keep a state every 256 tokens."""
    return range((begin // 256 + 1) * 256, ask.tokens, 256)


@dataclass(slots=True)
class Result:
    """A run's result. prompt: all prompt tokens. hit: those not computed. evicted: number of evicted snapshots."""

    prompt: int = 0
    hit: int = 0
    evicted: int = 0

    @property
    def rate(self) -> float:
        """The share of prompt tokens that were not computed."""
        return self.hit / self.prompt


class Simulation:
    """A cache with one policy.

    points, score: where it keeps states, and what it evicts. budget: bytes. answers: whether it keeps states at
    answers' ends. future: by key, the times at which a prompt begins from it, the last first; for `farthest`.
    """

    def __init__(
        self, points: Points, score: Score, budget: float, answers: bool = True,
        future: dict[tuple[str, int], list[float]] | None = None,
    ) -> None:  # fmt: skip
        self._points, self._score, self._budget, self._answers = points, score, budget, answers
        self._future = future
        self._nodes: dict[tuple[str, int], Node] = {}
        self._at: dict[str, list[int]] = {}  # segment -> positions kept in it
        self._seen: dict[str, int] = {}  # segment -> how much of it was computed
        self.bytes = 0
        self.result = Result()
        self.begun: dict[tuple[str, int], list[float]] = {}

    def run(self, asks: Iterable[Ask]) -> Result:
        """Simulate the requests one after another."""
        for ask in asks:
            self._ask(ask)
        return self.result

    def _ask(self, ask: Ask) -> None:
        node = self._longest(ask.prompt, ask.tokens - 1)
        begin = node.kept.position if node is not None else 0
        if node is not None:
            node.kept.used, node.kept.uses = ask.at, node.kept.uses + 1
            self.begun.setdefault(node.key, []).append(ask.at)
            self._rate(node)
        seen = self._common(ask.prompt)
        branch = seen if begin < seen < ask.tokens else None
        self.result.prompt += ask.tokens
        self.result.hit += begin
        whole = (*ask.prompt, ask.answer)
        ends = [ask.answer.end - 1] if self._answers else []
        for position in (*self._points(ask, begin, branch), *ends):
            self._keep(cut(whole, position), ask.at)
        for segment in whole:
            self._seen[segment.name] = max(self._seen.get(segment.name, 0), segment.end)

    def _longest(self, path: Path_, limit: int) -> Node | None:
        for segment in reversed(path):
            positions = self._at.get(segment.name)
            if positions:
                at = bisect_right(positions, min(limit, segment.end))
                if at:
                    return self._nodes[segment.name, positions[at - 1]]
        return None

    def _common(self, path: Path_) -> int:
        common = 0
        for segment in path:
            seen = self._seen.get(segment.name)
            if seen is None:
                break
            common = min(seen, segment.end)
            if seen < segment.end:
                break
        return common

    def _keep(self, path: Path_, now: float) -> None:
        key = path[-1].name, path[-1].end
        if (there := self._nodes.get(key)) is not None:
            there.kept.used = now
            self._rate(there)
            return
        parent = self._longest(path, path[-1].end)
        kept = Kept(path[-1].end, b"", (), parent.kept if parent else None, now)
        node = Node(kept, path, uses=list(self._future.get(key, ())) if self._future is not None else [])
        while node.uses and node.uses[-1] <= now:
            node.uses.pop()
        size = STATE_BYTES + kept.saved_tokens * TOKEN_BYTES
        while self.bytes + size > self._budget:
            if not self._evict(spared=parent):
                return
        self._nodes[key] = node
        insort(self._at.setdefault(key[0], []), key[1])
        family = [n for n in self._nodes.values() if n.kept.parent is kept.parent and n is not node]
        for child in family:
            if child.kept.position > kept.position and _passes(child.path, path[-1]):
                self._adopt(child, node)
        if parent is not None:
            parent.children += 1
        node.size = size
        self.bytes += size
        self._rate(node)

    def _adopt(self, child: Node, node: Node) -> None:
        """Make a longer snapshot the child of a new shorter one, which takes over the latents they share."""
        old = child.size
        child.kept.parent = node.kept
        child.size = STATE_BYTES + child.kept.saved_tokens * TOKEN_BYTES
        self.bytes += child.size - old
        node.children += 1
        parent = self._parent(node)
        if parent is not None:
            parent.children -= 1
        self._rate(child)

    def _parent(self, node: Node) -> Node | None:
        return self._longest(node.path, node.kept.position - 1)

    def _rate(self, node: Node) -> None:
        while node.uses and node.uses[-1] <= node.kept.used:
            node.uses.pop()
        node.score = self._score(node)

    def _evict(self, spared: Node | None) -> bool:
        among = [n for n in self._nodes.values() if n is not spared]
        if not among:
            return False
        victim = min(among, key=lambda n: n.score)
        parent = self._parent(victim)
        if victim.children:
            for child in [n for n in self._nodes.values() if n.kept.parent is victim.kept]:
                child.kept.parent = victim.kept.parent
                self.bytes -= child.size
                child.size = STATE_BYTES + child.kept.saved_tokens * TOKEN_BYTES
                self.bytes += child.size
                self._rate(child)
                if parent is not None:
                    parent.children += 1
        if parent is not None:
            parent.children -= 1
        del self._nodes[victim.key]
        self._at[victim.key[0]].remove(victim.key[1])
        self.bytes -= victim.size
        self.result.evicted += 1
        return True


def optimum(asks: Iterable[Ask]) -> Result:
    """The result of an unbounded cache that keeps a state at every token."""
    result, seen = Result(), dict[str, int]()
    for ask in asks:
        common = 0
        for segment in ask.prompt:
            known = seen.get(segment.name, 0)
            common = max(common, min(known, segment.end))
            if known < segment.end:
                break
        result.prompt += ask.tokens
        result.hit += min(common, ask.tokens - 1)
        for segment in (*ask.prompt, ask.answer):
            seen[segment.name] = max(seen.get(segment.name, 0), segment.end)
    return result


def _passes(path: Path_, point: Segment) -> bool:
    """Whether a path begins with the tokens that end at `point`."""
    return any(segment.name == point.name and segment.end >= point.end for segment in path)
