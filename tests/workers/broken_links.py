"""Two prefill and two decode workers of two ranks each, whose links break at random points in the middle of snapshots.

`python -m tests.workers.broken_links --times 200` breaks so many and prints what became of the requests. Whatever
breaks: an answer is the one that one process gives, or an error; every rank lives on; and the same pair of workers
serves the next request.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from tests.forks import FORKS, forked
from tests.workers.harness import GOLDEN, Stream, Worker, Workers, workers
from wire.protocol import Role, SamplingParams, TokenLogprob
from workers.config import Rendezvous, WorkerConfig
from workers.leader.ranks import Launch
from workers.rank.engine import Engine
from workers.rank.process import rank_main
from workers.transfer import torch_dist

TP = 2
Pair = tuple[Worker, Worker]
CONFIG = WorkerConfig(
    str(GOLDEN / "base"), tp=TP, dtype="float32", page_size=8, pages=400, slots=8, max_model_len=256,
    max_step_tokens=24, channel="gloo", handoff_timeout_s=30.0,
)  # fmt: skip
SAMPLING = SamplingParams(max_tokens=6, seed=1, temperature=0.0, logprobs=0)
# How a link breaks: its payload connections, or its control connection, before a tensor, or while it moves.
KINDS = ("payload before", "payload within", "payload after", "control before", "control within")
_CLOSE = 1e-4
_CHUNKS = range(8, 90)
_ARMED, _KIND, _BROKEN, _FIELDS = 0, 1, 2, 3


class Breaker:
    """Breaks the links of one rank, in its process: `_MOVES` tensors from now, as the test's process has set it."""

    def __init__(self, shared: Any, rank: int) -> None:
        self._shared = shared
        self._at = rank * _FIELDS
        self._draw = random.Random(rank)

    def install(self) -> None:
        """Look on at every group that links make, and at every tensor that moves."""
        make, move = torch_dist._gloo, torch_dist._Member._run
        groups: dict[int, list[int]] = {}

        def making(*args: Any) -> Any:
            before = _sockets()
            group = make(*args)
            groups[id(group)] = [fd for fd in _sockets() if fd not in before]
            return group

        def moving(member: Any, start: Callable[[Any], Any], size: int) -> None:
            kind = self._due()
            if kind is None:
                move(member, start, size)
                return
            what, when = kind.split()
            cut = member._control.close if what == "control" else partial(_cut, groups[id(member._group)])
            if when == "within":
                threading.Timer(self._draw.uniform(0, 2e-3), cut).start()
            elif when == "before":
                cut()
            try:
                move(member, start, size)
            finally:
                if when == "after":
                    cut()

        torch_dist._gloo, torch_dist._Member._run = making, moving  # type: ignore[assignment, method-assign]

    def _due(self) -> str | None:
        """How to break the link now; None for not."""
        with self._shared.get_lock():
            left = self._shared[self._at + _ARMED]
            if left <= 0:
                return None
            self._shared[self._at + _ARMED] = left - 1
            if left > 1:
                return None
            self._shared[self._at + _BROKEN] += 1
            return KINDS[self._shared[self._at + _KIND]]


def _sockets() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
    return found


def _cut(descriptors: list[int]) -> None:
    """As a network that is gone: both directions end."""
    for fd in descriptors:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            connection.getpeername()  # what only listens is no connection
            connection.shutdown(socket.SHUT_RDWR)


def _rank_main(shared: Any, place: int, *job: Any) -> None:
    Breaker(shared, place).install()
    rank_main(*job)


def breaking_launcher(shared: Any, first: int, config: WorkerConfig, worker_id: str) -> Launch:
    """Starts ranks whose links break when the test's process says so; theirs are places from `first` on."""

    async def launch(rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        await forked(_rank_main, shared, first + rank, config, worker_id, rank, endpoint, rendezvous)

    return launch


def _engine(chunk: int) -> Engine:
    """One process that computes prompts in chunks of so many tokens."""
    return Engine(replace(CONFIG, tp=1, max_step_tokens=chunk))


def _alike(got: Sequence[TokenLogprob], right: Sequence[TokenLogprob]) -> bool:
    """Whether tokens and their log-probabilities are the same; every value of a snapshot shows in these."""
    same = [p.token_id for p in got] == [p.token_id for p in right]
    return same and all(abs(p.logprob - q.logprob) < _CLOSE for p, q in zip(got, right, strict=True))


@dataclass
class Report:
    """How many links were broken, requests beside them that were answered, and all that ended with an error.

    ties: answers that one process gives, too, if it computes the prompt in other chunks.
    """

    broken: int = 0
    ties: int = 0
    whole: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class Fleet:
    """The four workers, and answers of one process to hold theirs against."""

    def __init__(self, started: Workers, shared: Any, seed: int) -> None:
        self._started = started
        self._shared = shared
        self._draw = random.Random(seed)
        self._engine = _engine(256)
        self.report = Report()
        self.prefill: list[Worker] = []
        self.decode: list[Worker] = []

    async def start(self) -> None:
        """Start the workers, all at once."""
        roles: tuple[Role, ...] = ("prefill", "prefill", "decode", "decode")
        launchers = [partial(breaking_launcher, self._shared, TP * place) for place in range(len(roles))]
        four = await asyncio.gather(
            *(
                self._started.start(CONFIG, role, live=(), launcher=launcher)
                for role, launcher in zip(roles, launchers, strict=True)
            )
        )
        self.prefill, self.decode = four[:2], four[2:]

    async def break_once(self) -> None:
        """A request over every pair at once while the links of one rank break, then one over every pair in peace."""
        rank = self._draw.randrange(4 * TP)
        # A snapshot is some 2 to 8 parts of latents, and a state; two of them go over a rank's links.
        self._set(rank, self._draw.randrange(1, 12), self._draw.randrange(len(KINDS)))
        pairs = [(p, d) for p in self.prefill for d in self.decode]
        self.report.whole += len(pairs) - len(await self._failed(pairs))
        self._set(rank, 0, 0)
        # A payload connection that broke after the last tensor shows at the next one, and costs that request too.
        assert not await self._failed(await self._failed(pairs))
        self._check_ranks()
        self.report.broken = sum(self._shared[_BROKEN::_FIELDS])

    async def idle(self) -> None:
        """Nothing is left of any request, anywhere."""
        for worker in (*self.prefill, *self.decode):
            await worker.caller.idle(worker.info)

    def _set(self, rank: int, moves: int, kind: int) -> None:
        with self._shared.get_lock():
            self._shared[rank * _FIELDS + _ARMED] = moves
            self._shared[rank * _FIELDS + _KIND] = kind

    async def _failed(self, pairs: list[Pair]) -> list[Pair]:
        """A request over every pair at once; the pairs whose requests ended with an error. All others are right."""
        prompts = [tuple(self._draw.randrange(3, 250) for _ in range(self._draw.randrange(20, 180))) for _ in pairs]
        streams = [self._started.split(p, d, ids, SAMPLING) for (p, d), ids in zip(pairs, prompts, strict=True)]
        expected = await asyncio.to_thread(self._engine.generate, prompts, [SAMPLING] * len(prompts))
        failed = []
        for pair, prompt, stream, right in zip(pairs, prompts, streams, expected, strict=True):
            got = await self._answer(stream)
            if got is None:
                failed.append(pair)
            elif not _alike(got, right.logprobs):
                assert await asyncio.to_thread(self._is_tie, prompt, got), (prompt, got, right.logprobs)
                self.report.ties += 1
        return failed

    async def _answer(self, stream: Stream) -> list[TokenLogprob] | None:
        """A request's tokens; None if it ended with an error."""
        end = await stream.end()
        if end.finish == "error":
            assert end.error is not None
            self.report.failed[re.sub(r"(prefill|decode)-\d+", "a worker", end.error.partition(":")[0])] += 1
            return None
        return [p for o in sorted(stream.outputs, key=lambda o: o.offset) for p in o.logprobs]

    def _is_tie(self, prompt: tuple[int, ...], got: Sequence[TokenLogprob]) -> bool:
        """Whether one process gives that answer too once it computes the prompt in other chunks.

        Sums are then rounded otherwise, which now and then makes another expert the best for a token.
        """
        return any(_alike(got, _engine(size).generate([prompt], [SAMPLING])[0].logprobs) for size in _CHUNKS)

    def _check_ranks(self) -> None:
        for worker in (*self.prefill, *self.decode):
            assert not worker.running.done()
            for rank in worker.info.ranks:
                os.kill(rank.pid, 0)


async def run(times: int, seed: int, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Break so many links; AssertionError for anything that must not be."""
    shared = FORKS.Array("q", 4 * TP * _FIELDS)
    async with workers() as started:
        fleet = Fleet(started, shared, seed)
        await fleet.start()
        began = time.monotonic()
        while fleet.report.broken < times:
            await fleet.break_once()
            tell(f"{fleet.report.broken} broken, {time.monotonic() - began:.0f} s")
        await fleet.idle()
        return fleet.report


def main() -> None:
    """Break links and say what became of the requests beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = asyncio.run(run(asked.times, asked.seed, tell=lambda line: print(line, flush=True)))
    print(f"{report.broken} links broken in the middle of snapshots; no rank ended, no answer was wrong")
    print(f"answers that hang on how sums are rounded: {report.ties}")
    print(f"requests beside them: {report.whole} answered rightly, {report.failed.total()} ended with an error:")
    for reason, count in report.failed.most_common():
        print(f"  {count:4} {reason}")


if __name__ == "__main__":
    main()
