"""Tests grammars in whole workers: compiled while steps run, handed over with requests, named in errors."""

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tokenizers

from tests.workers import harness
from tests.workers.harness import Stream, Worker, Workers, workers
from wire.protocol import Abort, Grammar, SamplingParams
from workers.config import Rendezvous, WorkerConfig
from workers.leader.ranks import Launch
from workers.rank.engine import Engine
from workers.rank.grammar import Grammars
from workers.rank.process import rank_main

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
PROMPT = tuple(range(40, 70))
ENDS = (1267, 1269)
WORD = Grammar("start: /[a-z]{12}( [0-9]{3})+!/")


def config(tp: int = 1) -> WorkerConfig:
    return WorkerConfig(str(NANO), tp=tp, page_size=16, slots=8, max_model_len=400, max_step_tokens=64)


def sampling(grammar: Grammar | None, seed: int = 3, most: int = 60) -> SamplingParams:
    return SamplingParams(most, seed, stop_token_ids=ENDS, grammar=grammar)


def in_threads(config: WorkerConfig, worker_id: str) -> Launch:
    """Ranks as threads of this process, where a test can hold them up."""

    async def launch(rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        await asyncio.to_thread(rank_main, config, worker_id, rank, endpoint, rendezvous)

    return launch


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, grammar: Grammar) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Compiling this grammar sets the first event and waits for the second."""
    begun, released = threading.Event(), threading.Event()
    inner = Grammars.compile

    def compile_slowly(self: Grammars, wanted: Grammar) -> None:
        if wanted == grammar:
            begun.set()
            assert released.wait(60)
        inner(self, wanted)

    monkeypatch.setattr(Grammars, "compile", compile_slowly)
    try:
        yield begun, released
    finally:
        released.set()


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "process_launcher", in_threads)


async def begin(started: Workers) -> Worker:
    return await started.start(config(), "decode")


@pytest.mark.usefixtures("_threads")
def test_running_sequences_go_on_while_a_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(begun: threading.Event, released: threading.Event) -> None:
        async with workers() as started:
            worker = await begin(started)
            running = started.whole(worker, PROMPT, SamplingParams(300, 1))
            await running.tokens(2)
            waiting = started.whole(worker, PROMPT, sampling(WORD))
            also = started.whole(worker, PROMPT, sampling(WORD))
            given_up = started.whole(worker, PROMPT, sampling(WORD))
            await asyncio.to_thread(begun.wait, 30)
            worker.caller.send(Abort(given_up.request_id))
            so_far = len(running.token_ids)
            await running.tokens(so_far + 20)
            assert not waiting.outputs
            assert not worker.leader.idle
            released.set()
            for stream in (waiting, also):
                assert (await stream.end()).error is None
            assert waiting.token_ids == also.token_ids
            assert not given_up.outputs
            await running.end()
            await worker.caller.idle(worker.info)
            assert worker.leader.idle

    with held_up(monkeypatch, WORD) as (begun, released):
        asyncio.run(run(begun, released))


@pytest.mark.usefixtures("_threads")
def test_a_grammar_that_can_not_be_compiled_ends_its_requests_alone() -> None:
    async def run() -> None:
        async with workers() as started:
            worker = await begin(started)
            bad = started.whole(worker, PROMPT, sampling(Grammar("start: <no-such-token>")))
            fine = started.whole(worker, PROMPT, sampling(WORD))
            end = await bad.end()
            assert (end.finish, end.offset, end.unservable) == ("error", 0, True)
            assert "unknown special token" in (end.error or "")
            stuck = started.whole(worker, PROMPT, SamplingParams(60, 3, grammar=Grammar("start: /[0-9]{2}/")))
            end = await stuck.end()
            assert (end.finish, end.offset, end.error) == ("error", 2, "its text is whole, but it may not end")
            assert end.unservable
            assert (await fine.end()).error is None
            await worker.caller.idle(worker.info)

    asyncio.run(run())


async def check(started: Workers, streams: list[Stream]) -> None:
    """Check that an answer equals the engine's and follows the grammar."""
    expected = Engine(config()).generate([PROMPT] * len(streams), [sampling(WORD, i) for i in range(len(streams))])
    tokenizer = tokenizers.Tokenizer.from_file(str(NANO / "tokenizer.json"))
    for stream, alone in zip(streams, expected, strict=True):
        assert (await stream.end()).finish == alone.finish
        assert stream.token_ids == alone.token_ids
        text = tokenizer.decode(stream.token_ids)
        assert re.match("[a-z]{12} [0-9]{3}", text)
        assert alone.finish == "length" or re.fullmatch("[a-z]{12}( [0-9]{3})+!", text)
    for worker in started.all:
        await worker.caller.idle(worker.info)


@pytest.mark.usefixtures("_threads")
def test_split_workers_keep_to_a_grammar_as_one_engine_does() -> None:
    async def run() -> None:
        async with workers() as started:
            prefill = await started.start(config(), "prefill")
            decode = await started.start(config(), "decode")
            streams = [started.split(prefill, decode, PROMPT, sampling(WORD, seed)) for seed in range(4)]
            await check(started, streams)
            for seed, stream in enumerate(streams):  # and a request that goes on elsewhere, amid its form
                had = stream.token_ids[: 3 + seed]
                rest = started.resumed(decode, PROMPT, had, sampling(WORD, seed))
                assert (await rest.end()).finish == (await stream.end()).finish
                assert (*had, *rest.token_ids) == stream.token_ids

    asyncio.run(run())


def test_of_several_ranks_one_keeps_to_the_grammar() -> None:
    async def run() -> None:
        async with workers() as started:
            decode = await started.start(config(tp=2), "decode")
            await check(started, [started.whole(decode, PROMPT, sampling(WORD, seed)) for seed in range(2)])

    asyncio.run(run())
