"""The contract: wherever a sequence begins, and whatever runs or ends beside it, it gives the fresh run's tokens.

Temperature 0, fp32, a prefill and a decode worker. `python -m tests.workers.cache.test_contract` prints the matrix of
docs/CACHE.md.
"""

import argparse
import asyncio
import itertools
import os
import random
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest

from tests.certificates import environment
from tests.forks import start_forks
from tests.workers.apart import apart
from tests.workers.harness import Launcher, Stream, Worker, Workers, workers
from tests.workers.test_worker import GAP, config, greedy
from wire.digest import PageDigests
from wire.protocol import Abort, Mark, Park, Prefix
from wire.tls import tls
from workers.leader import moving_away
from workers.rank.engine import Engine
from workers.schedule.sequence import State

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

Ids = tuple[int, ...]
Speculate = Literal["off"] | int
NEW = 16
DRIFT = 1e-4  # of a log-probability: chunks that are cut differently are summed in another order
HAD = 5  # tokens of an answer that was begun elsewhere
OTHERS = 16
SHORT = 4  # tokens that each of them is answered
BEGINNINGS = {
    "fresh": "computed, nothing kept",
    "prefix": "prefix hit",
    "branch": "branch hit",
    "host": "restored from host memory",
    "returned": "returned from decode, continued by prefill",
    "pulled": "pulled from a peer's host memory",
    "preempted": "preempted and restored",
    "forks": "4 forks at once",
    "stayed": "handed off, its next turn on the decode worker alone",
    "resumed": "begun elsewhere, continued behind a hit",
    "moved": "moved mid-answer to another worker",
    "file": "saved as a file, opened by another worker",
}
BESIDE = ("alone", "16 others at once", "aborts beside it")
Link = Literal["shm", "gloo", "tls"]


@dataclass(frozen=True)
class Group:
    """A prefill worker of `tp` ranks and a decode worker of `other`. link: how snapshots go between them."""

    tp: int
    other: int
    speculate: Speculate
    link: Link = "shm"

    def __str__(self) -> str:
        ranks = f"tp {self.tp}" if self.tp == self.other else f"tp {self.tp} to {self.other}"
        return ranks if self.link == "shm" else f"{ranks} by {self.link}"


ALIKE = [Group(tp, tp, speculate) for tp in (1, 2) for speculate in ("off", 3)]
# gloo stands for all that torch.distributed has.
UNLIKE = [
    Group(tp, other, speculate, link)
    for tp, other in ((2, 1), (1, 2)) for link in ("gloo", "tls") for speculate in ("off", 3)
]  # fmt: skip
# The command asks all fields. pytest asks each beginning of each group once, beside something else from group to group,
# so that each beginning meets all that can be beside it.
_LATER = ("moved", "file")
FIELDS = [
    *((group, beginning, BESIDE[(at + which) % 3]) for at, group in enumerate(ALIKE)
      for which, beginning in enumerate(BEGINNINGS) if beginning not in _LATER or group.speculate == 3),
    *((group, beginning, BESIDE[1 + at]) for at, group in enumerate((UNLIKE[1], UNLIKE[7]))
      for beginning in ("returned", *_LATER)),
]  # fmt: skip
_scopes = itertools.count()


@dataclass(frozen=True)
class Asked:
    """A prompt and the answer of a worker without a cache, whose two best tokens never nearly tie."""

    prompt: Ids
    answer: Ids
    logprobs: tuple[float, ...]


def fresh(engine: Engine, prompts: list[Ids], new: int = NEW) -> list[Asked]:
    """The prompts without a near tie, with their answers."""
    answers = engine.generate(prompts, [greedy(new)] * len(prompts))
    return [
        Asked(prompt, answer.token_ids, tuple(p.logprob for p in answer.logprobs))
        for prompt, answer in zip(prompts, answers, strict=True)
        if all(p.top_logprobs[0] - p.top_logprobs[1] > GAP for p in answer.logprobs)
    ]


@dataclass(frozen=True)
class Book:
    """The prompts: two turns of a session, three that differ after 45 tokens, and those of other sequences."""

    first: Asked
    second: Asked
    branches: list[Asked]
    others: list[Asked]


@cache
def book() -> Book:
    engine, rng = Engine(config(slots=16)), random.Random(5)

    def some(length: int) -> Ids:
        return tuple(rng.randrange(2, 256) for _ in range(length))

    turns: list[Asked] = []
    while not turns:
        for first in fresh(engine, [some(70) for _ in range(16)]):
            turns = [first, *fresh(engine, [(*first.prompt, *first.answer, *some(20)) for _ in range(16)])][:2]
            if len(turns) == 2:
                break
        else:
            turns = []
    stem = some(45)
    branches = fresh(engine, [(*stem, *some(6)) for _ in range(32)])[:3]
    others = fresh(engine, [some(8 + i % 16) for i in range(2 * OTHERS)], SHORT)[:OTHERS]
    assert (len(branches), len(others)) == (3, OTHERS)
    return Book(turns[0], turns[1], branches, others)


@dataclass(frozen=True)
class Pair:
    """A prefill and a decode worker that all cells share. Each cell has its own scope."""

    started: Workers
    prefill: Worker
    decode: Worker


@asynccontextmanager
async def pair_of(group: Group) -> AsyncIterator[Pair]:
    kept: dict[str, object] = {"cache_states": 128, "cache_host_bytes": 1 << 30, "speculate": group.speculate}
    book()  # made before there are workers, which would wait for this process meanwhile
    if group.link == "gloo":
        kept["channel"] = "gloo"
    with tempfile.TemporaryDirectory() as folder, encrypted(Path(folder), group.link == "tls") as launcher:
        async with workers() as started:
            prefill, decode = await asyncio.gather(
                started.start(config(group.tp, **kept), "prefill", launcher=launcher),
                started.start(config(group.other, **kept), "decode", launcher=launcher),
            )
            yield Pair(started, prefill, decode)


@contextmanager
def encrypted(folder: Path, wanted: bool) -> Iterator[Launcher | None]:
    """Where wanted, TLS in this process, and a launcher of ranks that send snapshots by it."""
    if not wanted:
        yield None
        return
    start_forks()
    variables, before = environment(folder), dict(os.environ)
    os.environ.update(variables)
    tls.cache_clear()
    try:
        yield apart(variables)
    finally:
        os.environ.clear()
        os.environ.update(before)
        tls.cache_clear()


class Cell:
    """One cell of the table."""

    def __init__(self, pair: Pair, beginning: str, beside: str) -> None:
        self.pair, self.beginning, self.beside = pair, beginning, beside
        self.scope = f"cell {next(_scopes)}"
        self.drift = 0.0
        first = book().first
        self.end = len(first.prompt) + NEW - 1  # of the first turn: its last token was never computed

    def split(self, prompt: Ids, pulls: bool = False, new: int = NEW) -> Stream:
        """Send a prompt to both workers. pulls: whether it begins from the decode worker's snapshot."""
        source = self.pair.decode.ref if pulls else None
        prefix = Prefix((), self.scope, self.end if pulls else 0, source)
        return self.pair.started.split(self.pair.prefill, self.pair.decode, prompt, greedy(new), prefix)

    def whole(self, prompt: Ids, priority: int = 0, new: int = NEW) -> Stream:
        """Send a prompt to the decode worker alone."""
        prefix = Prefix(scope=self.scope)
        return self.pair.started.whole(self.pair.decode, prompt, greedy(new), prefix, priority)

    async def park(self) -> None:
        """Move the end of the first turn from the decode worker's device to its host memory."""
        mark, caller = self.mark(), self.pair.decode.caller
        caller.send(Park(1, mark))
        await caller.until_kept(mark.position, mark.digest, "host")

    def mark(self) -> Mark:
        """The name of the first turn's end."""
        digests = PageDigests(16, self.scope)
        ids = (*book().first.prompt, *book().first.answer)
        digests.extend(ids)
        return Mark(self.end, digests.at(ids, self.end))

    async def copy(self) -> None:
        """Bring the end of the first turn to the prefill worker, as a file."""
        first = book().first
        ids = (*first.prompt, *first.answer)
        content = await self.pair.started.saved(self.pair.decode, (self.mark(),), ids, len(first.prompt))
        await self.pair.started.loaded(self.pair.prefill, self.scope, content)

    async def move(self, streams: list[Stream], asked: list[Asked], new: list[int]) -> list[Stream]:
        """Have the decode worker give up all its answers, and go on with them at the prefill worker."""
        started, to, gone = self.pair.started, self.pair.prefill, self.pair.decode
        for stream, one in zip(streams, asked, strict=True):
            started.prompts[stream.request_id] = one.prompt
        # Given up at once: else answers as short as these may end before they move.
        with patch.object(moving_away, "_COPY_S", 0.0):
            gone.leader.drain()
            try:
                return await asyncio.gather(
                    *(started.moved(s, to, gone, greedy(n), self.scope) for s, n in zip(streams, new, strict=True))
                )
            finally:
                gone.leader._draining = False

    async def prepare(self) -> None:
        """Prepare what the cell's sequence begins from."""
        if self.beginning in ("prefix", "returned", "pulled", "stayed"):
            await self.split(book().first.prompt).end()
        if self.beginning in ("host", "resumed", "file"):
            await self.whole(book().first.prompt).end()
        if self.beginning in ("host", "pulled"):
            await self.park()
        if self.beginning == "branch":
            for branch in book().branches[:2]:
                await self.split(branch.prompt).end()

    async def run(self) -> None:
        """Run the cell; AssertionError if a token differs or the sequence began elsewhere."""
        await self.prepare()
        asked = book().branches[2] if self.beginning == "branch" else book().second
        others, right = [], book().others
        if self.beginning == "preempted":
            wanted = [self.whole(asked.prompt, priority=9)]
            await wanted[0].tokens(2)
            # Those that take its place; where it is to be alone they are no more than it takes.
            right = right[: 8 if self.beside == "alone" else OTHERS]
            others = [self.whole(other.prompt, new=SHORT) for other in right]
            await self.yielded(wanted[0])
        else:
            right = [] if self.beside == "alone" else right
            others = [self.other(n) for n in range(len(right) // 2)]
            if self.beginning == "file":
                await self.copy()
            wanted = self.begin(asked)
            others += [self.other(n) for n in range(len(others), len(right))]
        if self.beginning == "moved":
            await wanted[0].tokens(2)
        if self.beside == "aborts beside it":
            for n, other in enumerate(others):
                await other.tokens(n % 3)
                for worker in (self.pair.prefill, self.pair.decode):
                    worker.caller.send(Abort(other.request_id))
            others = []
        if self.beginning == "moved":
            new = [NEW, *[SHORT] * len(others)]
            streams = await self.move([*wanted, *others], [asked, *right][: len(new)], new)
            wanted, others = streams[:1], streams[1:]
        for stream in (*wanted, *others):
            await stream.end()
        had = HAD if self.beginning == "resumed" else 0
        for stream in wanted:
            assert stream.token_ids == asked.answer[had:]
            differences = (abs(a - b) for a, b in zip(stream.logprobs, asked.logprobs[had:], strict=True))
            self.drift = max(self.drift, *differences)
        assert self.drift < DRIFT
        for stream, expected in zip(others, right, strict=False):
            assert stream.token_ids == expected.answer
        self.check_begin(wanted)
        for worker in (self.pair.prefill, self.pair.decode):
            await worker.caller.idle(worker.info)
            worker.leader._scheduler.cache.clear()

    def begin(self, asked: Asked) -> list[Stream]:
        prompt = asked.prompt
        if self.beginning in ("host", "stayed", "moved"):
            return [self.whole(prompt)]
        if self.beginning == "file":
            return [self.pair.started.whole(self.pair.prefill, prompt, greedy(NEW), Prefix(scope=self.scope))]
        if self.beginning == "resumed":
            prefix = Prefix(scope=self.scope)
            return [self.pair.started.resumed(self.pair.decode, prompt, asked.answer[:HAD], greedy(NEW), prefix)]
        if self.beginning == "forks":
            return [self.split(prompt) for _ in range(4)]
        return [self.split(prompt, pulls=self.beginning in ("returned", "pulled"))]

    def other(self, n: int) -> Stream:
        """Start the other sequences, half of them on one worker."""
        prompt = book().others[n].prompt
        if self.beginning == "moved":
            return self.whole(prompt, new=SHORT)
        return self.whole(prompt, new=SHORT) if n % 2 else self.split(prompt, new=SHORT)

    async def yielded(self, stream: Stream) -> None:
        """Wait until the sequence is preempted, and check that all it had computed is kept."""
        scheduler = self.pair.decode.leader._scheduler
        seq = scheduler.sequences[stream.request_id]
        async with asyncio.timeout(60):
            while seq.state is State.RUNNING:
                await asyncio.sleep(0)
        assert seq.state is State.QUEUED
        kept = scheduler.cache.index.longest(seq.known, seq.reach)
        assert kept is not None
        assert kept.position > seq.prompt_tokens

    def check_begin(self, wanted: list[Stream]) -> None:
        """Check that the sequences began where the cell says."""
        begun = [stream.cached for stream in wanted]
        if self.beginning == "moved":  # from the state that its worker kept
            ((begin, origin),) = begun
            assert begin > len(book().second.prompt)
            assert origin == "peer"
            return
        prompt_end = len(book().second.prompt) - 1
        expected = {
            "fresh": [(0, None)],
            "preempted": [(0, None)],
            "prefix": [(len(book().first.prompt) - 1, "device")],
            "branch": [(32, "device")],
            "host": [(self.end, "host")],
            "stayed": [(self.end, "device")],
            "file": [(self.end, "device")],
            "resumed": [(self.end, "device")],
            "returned": [(self.end, "peer")],
            "pulled": [(self.end, "peer")],
            "forks": [(0, None), *[(prompt_end, "device")] * 3],
        }
        assert sorted(begun) == expected[self.beginning]


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[asyncio.Runner, Pair]]:
    with asyncio.Runner() as runner:
        started = pair_of(request.param)
        both = runner.run(started.__aenter__())
        yield runner, both
        offered = both.decode.leader._scheduler.drafting.speculation.totals.offered
        assert bool(sum(offered)) == (request.param.speculate != "off")
        runner.run(started.__aexit__(None, None, None))


@pytest.mark.parametrize(("pair", "beginning", "beside"), FIELDS, indirect=["pair"], scope="module", ids=str)
def test_the_fresh_run_s_tokens(pair: tuple[asyncio.Runner, Pair], beginning: str, beside: str) -> None:
    runner, both = pair
    runner.run(Cell(both, beginning, beside).run())


async def matrix(groups: list[Group], beginnings: Sequence[str]) -> None:
    """Check all cells of these rows, without drafts and with 3, and print the table."""
    held: set[tuple[str, str, str, Speculate]] = set()
    drift = 0.0
    for group in groups:
        async with pair_of(group) as pair:
            for beginning, beside in itertools.product(beginnings, BESIDE):
                cell = Cell(pair, beginning, beside)
                await cell.run()
                drift = max(drift, cell.drift)
                held.add((str(group), beginning, beside, group.speculate))
    columns = list(itertools.product(dict.fromkeys(map(str, groups)), BESIDE))
    print(f"| | {' | '.join(f'{group}, {beside}' for group, beside in columns)} |\n|---|{'---|' * len(columns)}")
    for beginning in beginnings:
        fields = (
            " / ".join("equal" for drafts in ("off", 3) if (group, beginning, beside, drafts) in held)
            for group, beside in columns
        )
        print(f"| {BEGINNINGS[beginning]} | {' | '.join(fields)} |")
    print(f"\nLog-probabilities differ by {drift:.1e} at most.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", choices=[*BEGINNINGS, []], help="none: all")
    parser.add_argument("--unlike", action="store_true", help="workers of different ranks, by gloo and by TLS")
    asked = parser.parse_args()
    asyncio.run(matrix(UNLIKE if asked.unlike else ALIKE, asked.rows or list(BEGINNINGS)))
