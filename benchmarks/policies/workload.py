"""Makes the workloads of a fleet: made-up agents, requests for long answers, or a recorded trace."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = 512  # tokens of a block, which a trace names by one id


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. prompt, output: tokens. prefixes: (position, name) of each turn's end, the prompt's own last.

    kept_as: the name of the prefix of prompt and answer together, by which the next turn finds it. tenant: its sender.
    """

    prompt: int
    output: int
    prefixes: tuple[tuple[int, str], ...]
    kept_as: str | None = None
    tenant: str = ""


@dataclass(slots=True)
class Session:
    """Requests one after another. gaps[n]: seconds between the answer to request n and the next request."""

    begins: float
    asks: list[Ask]
    gaps: list[float] = field(default_factory=list)


def agents(rate: float, seconds: float, seed: int, longest: int = 120_000) -> Iterator[Session]:
    """Yield made-up agents' sessions, of which `rate` begin per second.

    They follow published figures of agents' traffic: a turn has 2,242 new tokens and a short answer, most gaps are
    below a second and a few are long, a long session has some thirty turns, and sessions of a kind share a system
    prompt.
    """
    rng = random.Random(seed)
    at, number = 0.0, 0
    while (at := at + rng.expovariate(rate)) < seconds:
        number += 1
        kind = min(int(rng.expovariate(0.7)), 5)
        system = 3_000 + 1_200 * kind
        prefixes = [(system, f"system {kind}")]
        asks: list[Ask] = []
        position = system
        for turn in range(1 + min(60, int(rng.expovariate(1 / 16)))):
            position += _about(rng, 2_242, 0.9)
            output = _about(rng, 180, 0.8)
            if position + output > longest:
                break
            name = f"{number} {turn}"
            asks.append(
                Ask(position, output, (*prefixes, (position, name)), f"{name} answered", f"tenant {number % 8}")
            )
            prefixes += [(position, name), (position + output, f"{name} answered")]
            position += output
        gaps = [rng.expovariate(2.0) if rng.random() < 0.86 else rng.lognormvariate(2.5, 1.0) for _ in asks]
        if asks:
            yield Session(at, asks, gaps)


def answers(rate: float, seconds: float, seed: int) -> Iterator[Session]:
    """Yield single requests with long answers, which load mostly the decode workers; `rate` arrive per second."""
    rng = random.Random(seed)
    at = 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        yield Session(at, [Ask(_about(rng, 750, 0.5), 2 + int(rng.expovariate(1 / 600)), ())])


def trace(path: Path, speed: float, skip: int, count: int) -> Iterator[Session]:
    """Yield `count` requests of a trace in Mooncake's format, after the first `skip`, `speed` times as fast.

    The format does not tell turns apart, so turns are taken to end where prompts diverge and at each prompt's end.
    """
    with path.open() as lines:
        rows = [json.loads(line) for at, line in zip(range(skip + count), lines, strict=False) if at >= skip]
    seen: dict[int, tuple[int, ...]] = {}  # by any block's id: the ends before it
    first = rows[0]["timestamp"] if rows else 0
    for row in rows:
        whole = row["hash_ids"][: row["input_length"] // _BLOCK]
        common = next((n for n in range(len(whole), 0, -1) if whole[n - 1] in seen), 0)
        before = seen[whole[common - 1]] if common else ()
        at = tuple(sorted({*(n for n in before if n <= common), *({common} if common else set()), len(whole)} - {0}))
        for n in range(common, len(whole)):
            seen[whole[n]] = tuple(e for e in at if e <= n + 1)
        prefixes = tuple((n * _BLOCK, str(whole[n - 1])) for n in at if n <= len(whole))
        prompt = max(row["input_length"], 2)
        yield Session((row["timestamp"] - first) / 1000 / speed, [Ask(prompt, max(2, row["output_length"]), prefixes)])


def _about(rng: random.Random, mean: float, sigma: float) -> int:
    return max(8, int(rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))
