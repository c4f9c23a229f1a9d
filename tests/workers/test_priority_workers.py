"""Tests on whole workers that preempted sequences end with the tokens that they would have alone."""

import asyncio
import random
from functools import cache

import pytest

from tests.workers.harness import GOLDEN, Stream, Worker, Workers, workers
from wire.protocol import SamplingParams, Submit
from wire.tokens import TokenIds
from workers.config import WorkerConfig
from workers.rank.engine import Completion, Engine
from workers.schedule.sequence import State

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]
BATCH = 1000
PROMPTS = [tuple(random.Random(n).randrange(2, 256) for _ in range(90 + n)) for n in range(3)]
SAMPLING = SamplingParams(max_tokens=30, seed=5, temperature=0.8)


def config() -> WorkerConfig:
    return WorkerConfig(
        model=str(GOLDEN / "tp4"), dtype="float32", page_size=16, slots=1, max_step_tokens=32, handoff_timeout_s=120.0
    )


@cache
def alone() -> list[Completion]:
    """The bare engine's answer to each prompt alone."""
    engine = Engine(config())
    return [engine.generate([prompt], [SAMPLING])[0] for prompt in PROMPTS]


class Places:
    """Two workers of one slot each, and the requests at them."""

    def __init__(self, started: Workers, prefill: Worker, decode: Worker) -> None:
        self.started, self.prefill, self.decode = started, prefill, decode
        self.live = started.whole(decode, PROMPTS[0], SAMPLING)

    def batch(self) -> Stream:
        """Make a batch's request, which no worker has yet."""
        return self.started._new(self.decode)

    def decode_batch(self, stream: Stream) -> None:
        """Send it to the decode worker."""
        message = Submit(stream.request_id, TokenIds.of(PROMPTS[1]), SAMPLING, BATCH, self.prefill.ref)
        self.decode.caller.send(message)

    def prefill_batch(self, stream: Stream) -> None:
        """Send it to the prefill worker."""
        self.prefill.caller.send(Submit(stream.request_id, TokenIds.of(PROMPTS[1]), SAMPLING, BATCH, handoff=True))

    async def until(self, worker: Worker, stream: Stream, state: State) -> None:
        """Poll until a condition holds that no message reports."""
        sequences = worker.leader._scheduler.sequences
        async with asyncio.timeout(60):
            while stream.request_id not in sequences or sequences[stream.request_id].state is not state:
                await asyncio.sleep(0.005)

    async def check(self, *streams: Stream) -> None:
        """Check that all requests end as they would alone and leave nothing behind."""
        for stream, expected in zip((self.live, *streams), alone(), strict=False):
            await stream.end()
            assert stream.token_ids == expected.token_ids
        for worker in (self.prefill, self.decode):
            await worker.caller.idle(worker.info)


async def a_held_snapshot_yields_to_a_live_prompt(at: Places) -> None:
    batch = at.batch()
    at.prefill_batch(batch)
    await at.until(at.prefill, batch, State.HELD)  # nobody pulls it
    live = at.started.split(at.prefill, at.decode, PROMPTS[2], SAMPLING)
    await at.until(at.prefill, batch, State.QUEUED)
    at.decode_batch(batch)
    await live.end()
    assert live.token_ids == alone()[2].token_ids
    await at.check(batch)


async def a_pull_yields_and_is_computed_where_it_is(at: Places) -> None:
    await at.live.end()
    batch = at.batch()
    at.decode_batch(batch)
    await at.until(at.decode, batch, State.PULLING)  # of a prompt its prefill worker has yet to get
    live = at.started.whole(at.decode, PROMPTS[2], SAMPLING)
    await live.tokens(1)
    assert at.decode.leader._scheduler.sequences[batch.request_id].state is State.DISPLACED
    at.prefill_batch(batch)
    await live.end()
    assert live.token_ids == alone()[2].token_ids
    await at.check(batch)


async def a_running_sequence_yields(at: Places) -> None:
    await at.live.end()
    batch = at.batch()
    at.decode_batch(batch)
    at.prefill_batch(batch)
    await batch.tokens(5)
    live = at.started.split(at.prefill, at.decode, PROMPTS[2], SAMPLING)
    await live.end()
    assert batch.ended is None
    assert live.token_ids == alone()[2].token_ids
    await at.check(batch)


def test_a_preempted_sequence_ends_as_it_would_alone() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await asyncio.gather(
                started.start(config(), "prefill"), started.start(config(), "decode")
            )
            for scenario in (
                a_held_snapshot_yields_to_a_live_prompt,
                a_pull_yields_and_is_computed_where_it_is,
                a_running_sequence_yields,
            ):
                await scenario(Places(started, prefill, decode))

    asyncio.run(run())
