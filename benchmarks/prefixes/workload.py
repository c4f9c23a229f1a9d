"""Makes the workloads of a cache: made-up agents, or a recorded trace in Mooncake's format."""

import heapq
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 512  # tokens of a block, which a trace names by one id
# Length beyond which an agent replaces its conversation by a summary.
_COMPACT_TOKENS = 100_000


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens up to position `end`. name: stands for all tokens up to there. turn: whether a turn ends there."""

    name: str
    end: int
    turn: bool = True


Path_ = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. at: its time in seconds. prompt: its segments. answer: the segment that follows the prompt."""

    at: float
    prompt: Path_
    answer: Segment

    @property
    def tokens(self) -> int:
        """The prompt's length in tokens."""
        return self.prompt[-1].end

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The positions at which its turns end."""
        return tuple(segment.end for segment in self.prompt if segment.turn)


def agents(sessions: int, seconds: float, seed: int) -> list[Ask]:
    """The requests of made-up agents, in order of time.

    `sessions` sessions begin within `seconds`, with 33 turns and 2,242 new tokens per turn on average. They share six
    system prompts. In a twentieth of the turns the session goes on from an earlier turn. Beyond 100,000 tokens a
    summary replaces all but the system prompt.
    """
    rng = random.Random(seed)
    each = (_session(rng, number, rng.uniform(0.0, seconds)) for number in range(sessions))
    return list(heapq.merge(*map(list, each), key=lambda ask: ask.at))


def _session(rng: random.Random, number: int, at: float) -> Iterator[Ask]:
    kind = min(int(rng.expovariate(0.7)), 5)
    system = Segment(f"system {kind}", 3_000 + 1_200 * kind)
    path: Path_ = (system,)
    for turn in range(rng.randint(20, 46)):
        if path[-1].end > _COMPACT_TOKENS:
            path = (system, Segment(f"{number} summary {turn}", system.end + 3_000))
        elif len(path) > 4 and rng.random() < 0.05:
            path = path[: 1 + 2 * rng.randint(1, len(path) // 2 - 1)]
        prompt = (*path, Segment(f"{number} turn {turn}", path[-1].end + _about(rng, 2_242, 0.9)))
        answer = Segment(f"{number} answer {turn}", prompt[-1].end + _about(rng, 280, 0.8))
        yield Ask(at, prompt, answer)
        path = (*prompt, answer)
        at += 2.0 + (rng.expovariate(2.0) if rng.random() < 0.86 else rng.lognormvariate(2.5, 1.0))


def trace(path: Path, count: int) -> list[Ask]:
    """The first `count` requests of a trace.

    A trace names blocks of tokens, not turns. A prompt that begins with all whole blocks of an earlier one, and is
    longer than that and its answer, is taken as its next turn.
    """
    asks: list[Ask] = []
    last: dict[int, Ask] = {}  # by the last whole block of its prompt
    owner: dict[int, Path_] = {}  # by block: a prompt that holds it
    with path.open() as lines:
        for number, line in zip(range(count), lines, strict=False):
            row = json.loads(line)
            tokens, blocks = max(row["input_length"], 2), row["hash_ids"][: row["input_length"] // _BLOCK]
            common = next((n for n in range(len(blocks), 0, -1) if blocks[n - 1] in owner), 0)
            before: Path_ = ()
            if common:
                earlier = last.get(blocks[common - 1])
                if earlier is not None and earlier.answer.end < tokens:
                    before = (*earlier.prompt, earlier.answer)
                else:
                    before = cut(owner[blocks[common - 1]], common * _BLOCK)
            if before and before[-1].end >= tokens:
                before = cut(before, tokens - 1)
            prompt = (*before, Segment(f"{number}", tokens))
            ask = Ask(
                row["timestamp"] / 1000, prompt, Segment(f"{number} answered", tokens + max(1, row["output_length"]))
            )
            asks.append(ask)
            owner |= dict.fromkeys(blocks, prompt)
            if blocks:
                last[blocks[-1]] = ask
    return asks


def cut(path: Path_, end: int) -> Path_:
    """A path cut to its first `end` tokens."""
    whole = [segment for segment in path if segment.end <= end]
    if whole and whole[-1].end == end:
        return tuple(whole)
    return (*whole, Segment(path[len(whole)].name, end, turn=False))


def _about(rng: random.Random, mean: float, sigma: float) -> int:
    return max(8, int(rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))
