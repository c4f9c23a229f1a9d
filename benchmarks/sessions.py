"""Measures what sessions save, with ling-nano on one rank without a GPU: `python -m benchmarks.sessions`.

fork: the time until 8 forks of one session of 6,000 tokens have their first tokens, against 8 new prompts of the same
length. park: 100 sessions are parked in host memory and resumed on a device that keeps ten. move: the pause of an
answer after 6,000 tokens, whose worker is drained.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tests.workers.harness import workers
from wire.protocol import Mark, Prefix, SamplingParams, Submit
from wire.tokens import TokenIds
from workers.config import WorkerConfig
from workers.rank.engine import Engine

_MODEL = str(Path(__file__).parent.parent / "checkpoints" / "ling-nano")
_LONG, _FORKS, _SESSIONS, _BUDGET, _SHORT = 6000, 8, 100, 10, 200
_CONFIG = WorkerConfig(
    _MODEL, pages=1200, slots=16, max_model_len=8192, cache_states=24, cache_host_bytes=1 << 30
)  # fmt: skip


def _prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 400) for _ in range(length)]


def _greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, seed=0, temperature=0.0)


def _run(engine: Engine, prompts: Sequence[list[int]], count: int) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in engine.generate(prompts, [_greedy(count)] * len(prompts))]


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Run `work`; returns its wall seconds and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def fork() -> None:
    """Print the time to the first tokens of 8 forks against that of 8 new prompts."""
    engine = Engine(_CONFIG)
    session = _prompt(0, _LONG)
    whole = [*session, *_run(engine, [session], 8)[0]]
    fresh = [_prompt(100 + n, _LONG + 24) for n in range(_FORKS)]
    forks = [[*whole, *_prompt(200 + n, 16)] for n in range(_FORKS)]
    forked, fresh_took = _timed(lambda: _run(engine, forks, 1)), _timed(lambda: _run(engine, fresh, 1))
    print(
        f"fork: 8 first tokens in {forked[0]:.3f} s ({forked[1]:.3f} s of CPU) from forks, {fresh_took[0]:.3f} s "
        f"({fresh_took[1]:.3f} s of CPU) from fresh prompts of {_LONG + 24} tokens: {forked[1] / fresh_took[1]:.3f} of "
        "the CPU time"
    )


def park() -> None:
    """Park and resume 100 sessions on a device that keeps ten, and print the time of each against computing it."""
    engine = Engine(replace(_CONFIG, cache_states=_BUDGET))
    cache = engine.scheduler.cache
    wholes = []
    for n in range(_SESSIONS):
        ids = _prompt(1000 + n, _SHORT)
        whole = [*ids, *_run(engine, [ids], 4)[0]]
        wholes.append(whole)
        kept = next(k for k in cache.index if k.position == len(whole) - 1 and k.slot >= 0)
        engine.scheduler.pin(f"s{n}", [Mark(kept.position, kept.digest)], time.monotonic(), float("inf"))
        engine.scheduler.park(Mark(kept.position, kept.digest), time.monotonic())
        engine.step()
    hits = cache.totals.hits["host"]

    def resume_all() -> None:
        for whole in wholes:
            name = engine.add(whole, _greedy(1))
            engine.scheduler.sequences[name].warm = True
            while engine.scheduler.sequences:
                engine.step()

    wall, cpu = _timed(resume_all)
    came = cache.totals.hits["host"] - hits
    again = Engine(replace(_CONFIG, cache_states=0))
    some = wholes[:_BUDGET]
    computed = _timed(lambda: [_run(again, [whole], 1) for whole in some])
    print(
        f"park: {came} of {_SESSIONS} sessions came back from the host to a device that keeps {_BUDGET}, "
        f"{1000 * wall / _SESSIONS:.1f} ms each ({1000 * cpu / _SESSIONS:.1f} ms of CPU); computing each anew "
        f"{1000 * computed[0] / len(some):.1f} ms ({1000 * computed[1] / len(some):.1f} ms of CPU)"
    )


async def move() -> None:
    """Move answers between two workers, and print how long a client waits for the next token."""
    async with workers() as started:
        one, two = await asyncio.gather(*(started.start(_CONFIG, "decode") for _ in range(2)))
        # The first move includes connecting the two workers; the later ones find them connected.
        pauses = []
        for n in range(4):
            prompt = _prompt(5000 + n, _LONG)
            stream = started.whole(one, tuple(prompt), _greedy(200))
            started.prompts[stream.request_id] = tuple(prompt)
            await stream.tokens(20)
            one.leader.drain()
            end = (await started.drained(stream, two, one)).kept_tokens
            last = time.perf_counter()
            ids = TokenIds.of((*prompt, *stream.token_ids))
            again = started._new(two)
            prefix = Prefix(source=one.ref, kept_tokens=end)
            two.caller.send(Submit(again.request_id, ids, _greedy(200), generated=len(stream.token_ids), prefix=prefix))
            await again.tokens(1)
            pauses.append(time.perf_counter() - last)
            await again.end()
            one.leader._draining = False
        print(
            f"move: behind {_LONG} tokens the next token came {1000 * pauses[0]:.0f} ms after the last one (the workers"
            f" connect), then {', '.join(f'{1000 * pause:.0f}' for pause in pauses[1:])} ms"
        )


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("only", nargs="?", choices=("fork", "park", "move"))
    only = parser.parse_args().only
    torch.set_num_threads(1)
    if only in (None, "fork"):
        fork()
    if only in (None, "park"):
        park()
    if only in (None, "move"):
        asyncio.run(move())


if __name__ == "__main__":
    _main()
