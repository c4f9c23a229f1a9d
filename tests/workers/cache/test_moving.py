"""Tests that a draining worker's answers move with their states, without changing transcripts."""

import asyncio
import random
from functools import cache
from typing import Literal

import pytest

from tests.workers.harness import workers
from tests.workers.test_worker import GAP, config
from wire.protocol import SamplingParams
from workers.leader import moving_away
from workers.rank.engine import Engine

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]
NEW = 40


def sampling(seed: int, temperature: float) -> SamplingParams:
    penalty = 1.2 if temperature else 1.0
    return SamplingParams(max_tokens=NEW, seed=seed, temperature=temperature, repetition_penalty=penalty, logprobs=2)


@cache
def asked(temperature: float, count: int) -> list[tuple[tuple[int, ...], tuple[int, ...], SamplingParams]]:
    """Prompts with one worker's answers; the greedy ones have no near tie."""
    engine = Engine(config(slots=8))
    out = []
    for seed in range(400):
        rng = random.Random(seed)
        prompt = tuple(rng.randrange(2, 256) for _ in range(rng.randint(20, 60)))
        wanted = sampling(seed, temperature)
        (answer,) = engine.generate([prompt], [wanted])
        if all(p.top_logprobs[0] - p.top_logprobs[1] > GAP for p in answer.logprobs):
            out.append((prompt, answer.token_ids, wanted))
        if len(out) == count:
            return out
    raise AssertionError("too many near ties")


@pytest.mark.parametrize(
    ("tp", "to", "count", "temperature", "speculate"),
    [
        (1, 1, 4, 0.8, "off"), (2, 1, 4, 0.0, 3), (1, 2, 16, 0.0, "off"),
    ],
)  # fmt: skip
def test_migrated_mid_answer(
    monkeypatch: pytest.MonkeyPatch,
    tp: int,
    to: int,
    count: int,
    temperature: float,
    speculate: Literal["off"] | int,
) -> None:
    # Given up at once: else answers as short as these may end before they move.
    monkeypatch.setattr(moving_away, "_COPY_S", 0.0)

    async def run() -> None:
        async with workers() as started:
            kept = {"cache_states": 32, "slots": 16, "speculate": speculate}
            one, two = await asyncio.gather(
                started.start(config(tp, **kept), "decode"), started.start(config(to, **kept), "decode")
            )
            requests = asked(temperature, count)
            streams = []
            for prompt, _, wanted in requests:
                stream = started.whole(one, prompt, wanted)
                started.prompts[stream.request_id] = prompt
                streams.append(stream)
            for stream in streams:
                await stream.tokens(2)
            one.leader.drain()
            ended = await asyncio.gather(
                *(
                    started.moved(stream, two, one, wanted)
                    for stream, (_, _, wanted) in zip(streams, requests, strict=True)
                )
            )
            for stream, (_, answer, _) in zip(ended, requests, strict=True):
                await stream.end()
                assert stream.token_ids == answer
            # All of them began from the states that came over.
            assert two.leader._scheduler.cache.totals.hits["peer"] == count
            while not one.leader.idle:
                await asyncio.sleep(0.01)
            await two.caller.idle(two.info)

    asyncio.run(run())


@pytest.mark.parametrize(("tp", "to"), [(1, 1), (2, 1)])
def test_the_next_worker_pulls_snapshots_while_answers_go_on(tp: int, to: int) -> None:
    async def run() -> None:
        async with workers() as started:
            kept = {"cache_states": 32, "slots": 16}
            one, two = await asyncio.gather(
                started.start(config(tp, **kept), "decode"), started.start(config(to, **kept), "decode")
            )
            requests = asked(0.0, 4)
            streams = [started.whole(one, prompt, wanted) for prompt, _, wanted in requests]
            for stream, (prompt, _, _) in zip(streams, requests, strict=True):
                started.prompts[stream.request_id] = prompt
                await stream.tokens(2)
            one.leader.drain()
            told = zip(streams, requests, strict=True)
            ended = await asyncio.gather(*(started.moved(stream, two, one, asked[2]) for stream, asked in told))
            for stream, (_, answer, _) in zip(ended, requests, strict=True):
                await stream.end()
                assert stream.token_ids == answer
            assert started.copied
            assert two.leader._scheduler.cache.totals.hits["peer"]
            while not one.leader.idle:
                await asyncio.sleep(0.01)
            await two.caller.idle(two.info)

    asyncio.run(run())


def test_a_worker_without_a_cache_gives_its_answers_up_all_the_same() -> None:
    async def run() -> None:
        async with workers() as started:
            one, two = await asyncio.gather(started.start(config(1), "decode"), started.start(config(1), "decode"))
            prompt, answer, wanted = asked(0.0, 1)[0]
            stream = started.whole(one, prompt, wanted)
            started.prompts[stream.request_id] = prompt
            await stream.tokens(3)
            one.leader.drain()
            again = await started.moved(stream, two, one, wanted)
            await again.end()
            assert again.token_ids == answer
            await one.caller.idle(one.info)
            assert one.leader.idle

    asyncio.run(run())
