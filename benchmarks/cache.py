"""Measures what the prefix cache saves: `python -m benchmarks.cache [--trace PATH]`.

1. On ling-nano on this machine: the time to the first token of a session's next turn, begun from a snapshot on the
   device, from one in host memory, and computed; and how far states kept in fewer bits move its log-probabilities.
2. Simulated: each policy's hit rate by its budget, as a share of an unbounded cache's, for made-up agents and for a
   recorded trace if one is given.
3. A thousand requests on a cache that holds a tenth of what they would fill: it checks that slots and pages are all
   free again afterwards and that the counts of hits and misses add up.
"""

import argparse
import dataclasses
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from benchmarks.prefixes.simulate import (
    STATE_BYTES,
    TOKEN_BYTES,
    Points,
    Score,
    Simulation,
    all_points,
    branches,
    farthest,
    grid,
    lru,
    marconi,
    optimum,
    ours,
    turn_ends,
)
from benchmarks.prefixes.workload import Ask, agents, trace
from wire.protocol import SamplingParams
from workers.config import StateDtype, WorkerConfig
from workers.rank.engine import Engine

_NANO = "checkpoints/ling-nano"
_GOLDEN = "tests/golden/base"
_BEFORE, _NEW, _TIMES = 6_000, 200, 3
_DRIFTED = 8
# By name: the positions at which states are kept, the score by which they are evicted, and whether the state at an
# answer's end is kept.
_POLICIES: dict[str, tuple[Points, Score, bool]] = {
    "this engine": (all_points, ours, True),
    "its states, least recently used first": (all_points, lru, True),
    "prompt ends and answer ends alone": (turn_ends, ours, True),
    "branches and answer ends, after Marconi": (branches, marconi, True),
    "a state every 256 tokens, least recently used first": (grid, lru, False),
}
_CLAIRVOYANT = "its states, what is wanted last first (the future known)"


def _greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, seed=0, temperature=0.0)


def _first_token_s(engine: Engine, prompt: Sequence[int]) -> float:
    began = time.process_time()
    engine.generate([prompt], [_greedy(1)])
    return time.process_time() - began


def first_tokens() -> None:
    """Print the CPU seconds to the first token of a long session's next turn."""
    rng = random.Random(0)
    config = WorkerConfig(_NANO, slots=4, max_step_tokens=512, max_model_len=8192, cache_states=8)
    cold = Engine(dataclasses.replace(config, cache_states=0))
    device = Engine(config)
    host = Engine(dataclasses.replace(config, cache_states=1, cache_host_bytes=1 << 33))
    vocab = cold.model_config.vocab_size
    seconds: dict[str, list[float]] = {"miss": [], "device": [], "host": []}
    for _ in range(_TIMES):
        before = [rng.randrange(vocab) for _ in range(_BEFORE)]
        after = [*before, *(rng.randrange(vocab) for _ in range(_NEW))]
        seconds["miss"].append(_first_token_s(cold, after))
        for name, engine in (("device", device), ("host", host)):
            engine.generate([before], [_greedy(1)])
            if name == "host":  # something longer takes the only place on the device
                engine.generate([[rng.randrange(vocab) for _ in range(_BEFORE + 64)]], [_greedy(1)])
            hits = engine.scheduler.cache.totals.hits[name]  # type: ignore[index]
            seconds[name].append(_first_token_s(engine, after))
            assert engine.scheduler.cache.totals.hits[name] == hits + 1  # type: ignore[index]
    miss = statistics.median(seconds["miss"])
    print(
        f"First token of a turn of {_NEW} tokens behind {_BEFORE}, ling-nano, one rank, CPU seconds, median of {_TIMES}"
    )
    print("| | s | of a miss |\n|---|---|---|")
    for name, title in (("miss", "computed"), ("device", "kept on the device"), ("host", "kept in host memory")):
        value = statistics.median(seconds[name])
        print(f"| {title} | {value:.3f} | {value / miss:.3f} |")


def drift() -> None:
    """Print how far the log-probabilities of a next turn's first token move if its state was kept in fewer bits."""
    rng = random.Random(0)
    config = WorkerConfig(_NANO, slots=4, max_step_tokens=512, max_model_len=2048)
    cold = Engine(config)
    vocab = cold.model_config.vocab_size

    def some(count: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(count)]

    befores = [some(400) for _ in range(_DRIFTED)]
    turns = [[*before, *some(20)] for before in befores]
    right = [_best(cold, turn) for turn in turns]
    print(
        f"\nThe first token behind a state restored from host memory, {_DRIFTED} turns, ling-nano: how far its 20 best"
    )
    print("log-probabilities are from those of a fresh run.\n")
    print("| kept as | mean | largest | another best token |\n|---|---|---|---|")
    for dtype in get_args(StateDtype):
        keeping = dataclasses.replace(config, cache_states=1, cache_host_bytes=1 << 33, cache_state_dtype=dtype)
        engine = Engine(keeping)
        differences, others = [], 0
        for n, (before, turn) in enumerate(zip(befores, turns, strict=True), 1):
            engine.generate([before], [_greedy(1)])
            engine.generate([some(464)], [_greedy(1)])  # takes the only place on the device
            found = _best(engine, turn)
            assert engine.scheduler.cache.totals.hits["host"] == n
            differences += [abs(found[token] - p) for token, p in right[n - 1].items() if token in found]
            others += next(iter(found)) != next(iter(right[n - 1]))
        print(f"| {dtype} | {statistics.mean(differences):.1e} | {max(differences):.1e} | {others} of {_DRIFTED} |")


def _best(engine: Engine, prompt: Sequence[int]) -> dict[int, float]:
    """The 20 most likely first tokens with their log-probabilities, the most likely first."""
    (answer,) = engine.generate([prompt], [SamplingParams(max_tokens=1, seed=0, temperature=0.0, logprobs=20)])
    (first,) = answer.logprobs
    return dict(zip(first.top_ids, first.top_logprobs, strict=True))


def hit_rates(name: str, asks: Sequence[Ask], budgets: Sequence[int]) -> None:
    """Print a table of each policy's hit rate by tokens, divided by the hit rate of an unbounded cache."""
    best = optimum(asks)
    unbounded = Simulation(all_points, ours, math.inf)
    rate = unbounded.run(asks).rate
    future = {key: sorted(times, reverse=True) for key, times in unbounded.begun.items()}
    print(
        f"\n{name}: {len(asks)} requests of {best.prompt / len(asks):,.0f} tokens on average, of which an unbounded "
        f"cache with a state at every token has {best.rate:.3f};\nthis engine's states, unbounded: "
        f"{rate / best.rate:.3f} of that, in {unbounded.bytes / 1e9:,.0f} GB.\nShare of that by GB kept:\n"
    )
    print("| |" + "".join(f" {gb} |" for gb in budgets) + "\n|---|" + "---|" * len(budgets))
    for title, (points, score, answers) in _POLICIES.items():
        rates = [Simulation(points, score, gb * 1e9, answers).run(asks).rate for gb in budgets]
        print(f"| {title} |" + "".join(f" {r / best.rate:.3f} |" for r in rates), flush=True)
    rates = [Simulation(all_points, farthest, gb * 1e9, future=future).run(asks).rate for gb in budgets]
    print(f"| {_CLAIRVOYANT} |" + "".join(f" {r / best.rate:.3f} |" for r in rates), flush=True)


def pressure(requests: int = 1_000) -> None:
    """Run sessions whose snapshots would fill ten times the cache, and check that nothing is lost or left behind."""
    rng = random.Random(0)
    config = WorkerConfig(
        _GOLDEN, page_size=8, pages=96, slots=8, max_step_tokens=256, max_model_len=256, cache_states=6
    )
    budget = Engine(config).scheduler.cache.budget
    sessions = 120
    # At their ends sessions hold some 60 tokens and two states each.
    wanted = sessions * (2 * budget.state_bytes + 60 * budget.token_bytes)
    engine = Engine(dataclasses.replace(config, cache_host_bytes=wanted // 10))
    prompts = [[rng.randrange(256) for _ in range(20)] for _ in range(sessions)]
    asked = tokens = 0
    while asked < requests:
        chosen = rng.sample(range(sessions), 8)
        batch = [list(prompts[n]) for n in chosen]
        answers = engine.generate(batch, [_greedy(2)] * len(batch))
        assert all(len(answer.token_ids) == 2 for answer in answers)
        asked += len(batch)
        tokens += sum(map(len, batch))
        for n, answer in zip(chosen, answers, strict=True):
            more = [*prompts[n], *answer.token_ids, *(rng.randrange(256) for _ in range(12))]
            prompts[n] = more if len(more) < 100 else more[:20]
    totals, cache = engine.scheduler.cache.totals, engine.scheduler.cache
    hit, missed = sum(totals.hit_tokens.values()), sum(totals.missed_tokens.values())
    assert hit + missed == tokens, (hit, missed, tokens)
    assert sum(totals.misses.values()) == asked
    assert cache.host.bytes <= wanted // 10
    cache.clear()
    while not engine.scheduler.plan(0.0).plan.empty:
        pass
    assert (engine.scheduler.pages.free, engine.scheduler.slots.free) == (96, 8)
    assert (cache.slots.free, cache.host.bytes, len(cache.index)) == (cache.slots.size, 0, 0)
    print(
        f"\n{asked} requests of {sessions} sessions, host memory a tenth of what they would fill: all answered, "
        f"nothing left behind.\n{tokens} prompt tokens = {hit} begun from ({dict(totals.hit_tokens)}) + {missed} "
        f"computed ({dict(totals.missed_tokens)}); evicted {dict(totals.evicted)}"
    )


def main() -> None:
    """Run the parts that were asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="a trace in Mooncake's format, of which 2,000 requests are taken")
    parser.add_argument("--only", choices=("first", "drift", "rates", "pressure"))
    args = parser.parse_args()
    if args.only in (None, "first"):
        first_tokens()
    if args.only in (None, "drift"):
        drift()
    if args.only in (None, "rates"):
        print(f"\nSimulated: a state of {STATE_BYTES >> 20} MiB, {TOKEN_BYTES} bytes a token.")
        hit_rates("Agents", agents(40, 900.0, 1), (4, 8, 16, 32))
        if args.trace is not None:
            hit_rates(f"{args.trace.name}", trace(args.trace, 2_000), (8, 32, 128))
    if args.only in (None, "pressure"):
        pressure()


if __name__ == "__main__":
    main()
