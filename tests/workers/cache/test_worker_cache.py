"""Tests kept snapshots between whole workers: hits, partial hand-offs, returns from decode, host memory."""

import asyncio
import random
from functools import cache
from pathlib import Path

import pytest

from tests.workers.harness import Worker, Workers, workers
from tests.workers.test_worker import GAP, config, greedy
from wire.codec import CLUSTER
from wire.digest import PageDigests
from wire.handshake import call
from wire.protocol import Abort, Hello, Mark, Pin, Prefix, Pull, PullRefused, Submit, WorkerInfo
from wire.snapshot_file import read_head
from wire.tls import connect
from wire.tokens import TokenIds
from workers.rank.engine import Engine

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]
NEW = 12


@cache
def session() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The prompts of four turns, each with the answer of a worker without a cache; no near ties."""
    engine = Engine(config(slots=4))
    for seed in range(100):
        rng = random.Random(seed)
        prompt = tuple(rng.randrange(2, 256) for _ in range(70))
        out = []
        for _ in range(4):
            (answer,) = engine.generate([prompt], [greedy(NEW)])
            if any(p.top_logprobs[0] - p.top_logprobs[1] <= GAP for p in answer.logprobs):
                break
            out.append((prompt, answer.token_ids))
            prompt = (*prompt, *answer.token_ids, *(rng.randrange(2, 256) for _ in range(20)))
        else:
            return out
    raise AssertionError("every session has a near tie")


def digest(ids: tuple[int, ...], position: int) -> bytes:
    digests = PageDigests(16)
    digests.extend(ids)
    return digests.at(ids, position)


async def pair(started: Workers, tp: int, other: int = 0, **settings: object) -> tuple[Worker, Worker]:
    """A prefill worker of `tp` ranks and a decode worker of `other` ranks, or as many."""
    kept = {"cache_states": 16, "speculate": 3 if tp > 1 or other else "off", **settings}
    prefill, decode = await asyncio.gather(
        started.start(config(tp, **kept), "prefill"), started.start(config(other or tp, **kept), "decode")
    )
    return prefill, decode


@pytest.mark.parametrize(("tp", "other"), [(1, 1), (4, 2), (1, 2), (2, 1)])
def test_turns_over_split_workers_return_from_decode(tp: int, other: int) -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, tp, other)
            ends: list[int] = [0]
            received: list[int] = []
            for n, (prompt, answer) in enumerate(session()):
                prefix = Prefix(source=decode.ref, kept_tokens=ends[-1])
                stream = started.split(prefill, decode, prompt, greedy(NEW), prefix)
                assert (await stream.end()).error is None
                assert stream.token_ids == answer
                assert stream.cached == ((ends[-1], "peer") if n else (0, None))
                ends.append(len(prompt) + NEW - 1)
                received.append(ends[-1])
            for worker in started.all:
                await worker.caller.idle(worker.info)
            # Whoever continues is told where: the decode worker keeps each turn's end.
            ids = (*session()[-1][0], *session()[-1][1])
            assert decode.caller.kept[ends[-1], digest(ids, ends[-1])] == "device"

    asyncio.run(run())


def test_a_source_that_keeps_nothing_of_it_costs_no_answer() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill, decode = await pair(started, 1)
            prompt, answer = session()[0]
            gone = Prefix(source=decode.ref, kept_tokens=50)
            streams = [started.split(prefill, decode, prompt, greedy(NEW), gone)]
            unreachable = Prefix(source=decode.ref.__class__("decode-gone", "127.0.0.1", 1), kept_tokens=50)
            streams.append(started.split(prefill, decode, prompt, greedy(NEW), unreachable))
            for stream in streams:
                await stream.end()
                assert stream.token_ids == answer
            for worker in started.all:
                await worker.caller.idle(worker.info)

    asyncio.run(run())


def test_a_pull_that_can_not_be_served_is_refused_with_its_reason() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill = await started.start(config(1, cache_states=16), "prefill")
            reader, writer = await connect(prefill.info.host, prefill.info.port)
            await call(reader, writer, "")
            writer.write(CLUSTER.encode(Hello("decode-odd", "worker")))
            assert isinstance(await CLUSTER.read(reader), WorkerInfo)

            async def refusal(*messages: Pull) -> str:
                for message in messages:
                    writer.write(CLUSTER.encode(message))
                answer = await CLUSTER.read(reader)
                assert isinstance(answer, PullRefused)
                assert not answer.told
                return answer.reason

            assert await refusal(Pull("r", -1, 50, b"x" * 16)) == "it is no longer kept"
            # A pull may come before its request.
            ask = Pull("early", have=71)
            writer.write(CLUSTER.encode(ask))
            prompt, _ = session()[0]
            prefill.caller.send(Submit("early", TokenIds.of(prompt), greedy(NEW), handoff=True))
            assert "holds 71 latents can't have a snapshot of 70 tokens" in await refusal()
            prefill.caller.send(Abort("early"))
            writer.close()
            await prefill.caller.idle(prefill.info)

    asyncio.run(run())


@pytest.mark.parametrize(("tp", "other"), [(1, 2), (2, 1)])
def test_pulled_from_the_host_memory_of_another_worker(tp: int, other: int) -> None:
    async def run() -> None:
        async with workers() as started:
            kept: dict[str, object] = {"cache_states": 2, "cache_host_bytes": 1 << 30}
            prefill, decode = await pair(started, tp, other, **kept)
            begin = 0
            for n, (prompt, answer) in enumerate(session()):
                prefix = Prefix(source=decode.ref, kept_tokens=begin)
                stream = started.split(prefill, decode, prompt, greedy(NEW), prefix)
                assert (await stream.end()).error is None
                assert stream.token_ids == answer
                assert stream.cached == ((begin, "peer") if n else (0, None))
                begin = len(prompt) + NEW - 1
                for i in range(2):  # what takes the device's places
                    beside = started.whole(
                        decode, tuple(random.Random(9 * n + i).choices(range(2, 256), k=200)), greedy(2)
                    )
                    await beside.end()
                await decode.caller.idle(decode.info)
                assert decode.caller.kept[begin, digest((*prompt, *answer), begin)] == "host"
            for worker in started.all:
                await worker.caller.idle(worker.info)
                assert not list(worker.leader._scheduler.keeping.lending.leaving)

    asyncio.run(run())


def test_continued_from_the_disk_by_two_ranks_after_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        (first, answer), (second, expected), *_ = session()
        begin, ids = len(first) + NEW - 1, (*first, *answer)
        kept: dict[str, object] = {
            "cache_states": 16, "cache_host_bytes": 1 << 28, "cache_disk_dir": str(tmp_path), "speculate": 3,
            "cache_disk_bytes": 1 << 28,
        }  # fmt: skip
        async with workers() as started:
            decode = await started.start(config(2, **kept), "decode")
            # Of a file for each of two turns: the beginning, and what came after.
            for count, prompt, stop in ((1, first[:-20], len(first) - 21), (2, first, begin)):
                stream = started.whole(decode, prompt, greedy(NEW if prompt == first else 1))
                await stream.end()
                pin = Pin("s", (Mark(stop, digest(ids, stop)),), 3600.0)
                decode.caller.writer.write(CLUSTER.encode(pin))
                while len(list(tmp_path.rglob("*.safetensors"))) < 2 * count:
                    await asyncio.sleep(0.01)
            assert stream.token_ids == answer
            heads = [read_head(path).head for path in tmp_path.rglob("*.safetensors")]
            assert sorted((head.start, head.position) for head in heads) == [
                (0, len(first) - 21), (0, len(first) - 21), (len(first) - 21, begin), (len(first) - 21, begin),
            ]  # fmt: skip
        async with workers() as started:
            decode = await started.start(config(2, **kept), "decode")
            doomed = [started.whole(decode, (*second, n + 2), greedy(NEW)) for n in range(3)]
            stream = started.whole(decode, second, greedy(NEW))
            for other in doomed:
                decode.caller.send(Abort(other.request_id))
            await stream.end()
            assert stream.token_ids == expected
            assert stream.cached[0] == begin
            assert stream.cached[1] in ("disk", "device")
            await decode.caller.idle(decode.info)

    asyncio.run(run())
