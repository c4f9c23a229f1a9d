"""Tests whole workers without Ray: split prefill and decode equal the bare engine, and nothing leaks."""

import asyncio
import os
import random
import signal
from functools import cache

import pytest

from tests.workers.harness import GOLDEN, Worker, Workers, workers
from wire.protocol import Abort, SamplingParams
from workers.config import WorkerConfig
from workers.leader.ranks import WorkerLost
from workers.rank.engine import Completion, Engine

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

MODEL = str(GOLDEN / "tp4")
# Two summation orders of the same logits differ by rounding: prompts whose best two tokens ever come closer
# than this are not asked.
GAP = 1e-3


def config(tp: int = 1, model: str = MODEL, **settings: object) -> WorkerConfig:
    values = {"model": model, "tp": tp, "dtype": "float32", "page_size": 16, "slots": 8, "max_step_tokens": 64}
    return WorkerConfig(**{**values, **settings})  # type: ignore[arg-type]


def greedy(new: int) -> SamplingParams:
    return SamplingParams(max_tokens=new, seed=1, temperature=0.0, logprobs=2)


@cache
def cases(count: int) -> list[tuple[tuple[int, ...], SamplingParams, Completion]]:
    """Prompts of mixed lengths, with the bare engine's answers one by one."""
    engine = Engine(config(slots=64))
    rng = random.Random(7)
    out = []
    while len(out) < count:
        prompt = tuple(rng.randrange(2, 256) for _ in range(rng.choice((1, 5, 17, 64, 65, 130, 200))))
        sampling = greedy(rng.randrange(1, 24))
        (answer,) = engine.generate([prompt], [sampling])
        if all(p.top_logprobs[0] - p.top_logprobs[1] > GAP for p in answer.logprobs):
            out.append((prompt, sampling, answer))
    return out


async def pair(started: Workers, tp: int, **settings: object) -> tuple[Worker, Worker]:
    prefill, decode = await asyncio.gather(
        started.start(config(tp, **settings), "prefill"), started.start(config(tp, **settings), "decode")
    )
    return prefill, decode


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_split_workers_equal_the_bare_engine(tp: int) -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, tp)
            # The prefill worker answers every third itself, beside the prompts that it hands off.
            streams = [
                started.whole(prefill, p, s) if n % 3 == 0 else started.split(prefill, decode, p, s)
                for n, (p, s, _) in enumerate(cases(24))
            ]
            for stream, (_, _, expected) in zip(streams, cases(24), strict=True):
                end = await stream.end()
                assert end.error is None
                assert (stream.token_ids, end.finish) == (expected.token_ids, expected.finish)
            for worker in started.all:
                await worker.caller.idle(worker.info)

    asyncio.run(run())


def test_decode_worker_alone_and_a_preempting_one_equal_the_bare_engine() -> None:
    async def run() -> None:
        async with workers() as started:
            decode = await started.start(config(pages=26, max_model_len=300), "decode")
            streams = [started.whole(decode, p, s) for p, s, _ in cases(24)]
            for stream, (_, _, expected) in zip(streams, cases(24), strict=True):
                await stream.end()
                assert stream.token_ids == expected.token_ids
            await decode.caller.idle(decode.info)

    asyncio.run(run())


def test_seeded_sampling_does_not_depend_on_batch_split_or_worker() -> None:
    sampling = SamplingParams(
        max_tokens=20, seed=42, temperature=0.9, top_p=0.9, top_k=50, min_p=0.01, min_tokens=15,
        repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2, logit_bias=((9, 2.0),),
    )  # fmt: skip
    prompt = cases(24)[3][0]
    (alone,) = Engine(config()).generate([prompt], [sampling])

    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, 1)
            beside = [started.split(prefill, decode, p, s) for p, s, _ in cases(24)[:6]]
            stream = started.split(prefill, decode, prompt, sampling)
            await stream.end()
            assert stream.token_ids == alone.token_ids
            for had in (alone.token_ids[:count] for count in (1, 10, 19)):
                rest = started.resumed(decode, prompt, had, sampling)
                assert (await rest.end()).finish == alone.finish
                assert (*had, *rest.token_ids) == alone.token_ids
                assert min(output.offset for output in rest.outputs if output.token_ids) == len(had)
            refused = await started.resumed(decode, prompt, alone.token_ids, sampling).end()
            assert refused.error == "20 tokens are generated of at most 20"
            for other in beside:
                await other.end()

    asyncio.run(run())


def test_aborts_at_any_moment_leave_nothing_behind() -> None:
    async def run() -> None:
        rng = random.Random(3)
        async with workers() as started:
            prefill, decode = await pair(started, 2)
            for _ in range(4):
                streams = [started.split(prefill, decode, p, s) for p, s, _ in cases(24)]
                kept = streams[::3]
                for stream in streams:
                    if stream in kept:
                        continue
                    for _ in range(rng.randrange(20)):
                        await asyncio.sleep(0)
                    if rng.random() < 0.5:
                        await stream.tokens(1)
                    prefill.caller.send(Abort(stream.request_id))
                    decode.caller.send(Abort(stream.request_id))
                for stream, (_, _, expected) in list(zip(streams, cases(24), strict=True))[::3]:
                    assert (await stream.end()).error is None
                    assert stream.token_ids == expected.token_ids
                for worker in started.all:
                    await worker.caller.idle(worker.info)

    asyncio.run(run())


def test_a_killed_prefill_rank_ends_its_requests_by_name_and_frees_the_decode_worker() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, 2)
            prompt, sampling, expected = max(cases(24), key=lambda c: len(c[2].token_ids))
            first = started.split(prefill, decode, prompt, sampling)
            await first.end()
            os.kill(prefill.info.ranks[1].pid, signal.SIGSTOP)  # so that requests are caught under way
            stuck = [started.split(prefill, decode, prompt, sampling) for _ in range(4)]
            os.kill(prefill.info.ranks[1].pid, signal.SIGKILL)
            with pytest.raises(WorkerLost, match="rank 1"):
                await asyncio.wait_for(prefill.running, 60)
            await prefill.leader.close()
            await asyncio.wait_for(prefill.caller.closed.wait(), 60)
            for stream in stuck:
                end = await stream.end()
                assert end.finish == "error"
                assert end.retry  # elsewhere it may succeed
                assert prefill.info.worker_id in (end.error or "")
            await decode.caller.idle(decode.info)
            other = await started.start(config(2), "prefill")
            again = started.split(other, decode, prompt, sampling)
            await again.end()
            assert again.token_ids == expected.token_ids
            await decode.caller.idle(decode.info)

    asyncio.run(run())


def test_a_killed_decode_rank_frees_the_prefill_worker() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, 2)
            prompt = cases(24)[0][0]
            running = started.split(prefill, decode, prompt, SamplingParams(max_tokens=500, seed=0))
            await running.tokens(3)
            os.kill(decode.info.ranks[0].pid, signal.SIGKILL)
            with pytest.raises(WorkerLost, match="rank 0"):
                await asyncio.wait_for(decode.running, 60)
            await decode.leader.close()
            await prefill.caller.idle(prefill.info)

    asyncio.run(run())


def test_a_router_that_leaves_frees_its_requests() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, 1)
            stream = started.split(prefill, decode, cases(24)[0][0], SamplingParams(max_tokens=500, seed=0))
            await stream.tokens(2)
            for worker in started.all:
                worker.caller.writer.close()
                await asyncio.wait_for(worker.caller.closed.wait(), 60)
                await worker.caller.connect(worker.info.host, worker.info.port)
                worker.caller.seen = worker.caller.sent = 0
                await worker.caller.idle(worker.info)

    asyncio.run(run())


def test_workers_of_other_weights_or_layouts_are_refused_by_name() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, 1)
            for other, word in (
                (await started.start(config(1, dtype="bfloat16"), "decode"), "layout"),
                (await started.start(config(1, model=str(GOLDEN / "base")), "decode"), "weights_id"),
            ):
                stream = started.split(prefill, other, cases(24)[0][0], greedy(4))
                end = await stream.end()
                assert end.finish == "error"
                assert word in (end.error or "")
                prefill.caller.send(Abort(stream.request_id))
            bad = started.whole(decode, (2, 999), greedy(4))
            assert "vocabulary" in ((await bad.end()).error or "")
            await prefill.caller.idle(prefill.info)

    asyncio.run(run())


def test_a_worker_that_cannot_load_says_why() -> None:
    async def run() -> None:
        async with workers() as started:
            with pytest.raises(Exception, match="hold less than one sequence"):
                await started.start(config(1, pages=1), "decode")

    asyncio.run(run())


def test_a_stopped_rank_ends_its_worker_while_a_step_runs_and_between_steps() -> None:
    """The stopped rank closes no connection, so the leader must notice by itself."""

    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, 2)
            running = started.split(prefill, decode, cases(24)[0][0], SamplingParams(max_tokens=500, seed=0))
            await running.tokens(3)
            os.kill(decode.info.ranks[1].pid, signal.SIGSTOP)
            with pytest.raises(WorkerLost, match=r"no result after .*; ranks? (0, )?1 did nothing"):
                await asyncio.wait_for(decode.running, 60)
            await decode.leader.close()
            await prefill.caller.idle(prefill.info)
            os.kill(prefill.info.ranks[0].pid, signal.SIGSTOP)
            with pytest.raises(WorkerLost, match=r"ranks? 0(, 1)? gave no sign of life"):
                await asyncio.wait_for(prefill.running, 60)

    asyncio.run(run())
