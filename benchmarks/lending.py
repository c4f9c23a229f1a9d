"""Measures a worker's start from disk and from a live worker, and what lending weights costs the live worker.

`python -m benchmarks.lending` writes a synthetic checkpoint to a temporary folder. Workers start from its files, with
and without them in the page cache, and from a worker that serves it: over shared memory, as on one host, and over gloo,
as between hosts. It prints the gaps between tokens of a stream of the live worker while nothing else runs, while
another worker starts from disk, and while another worker starts from the live one. Ranks compute in fp32, so a worker
holds twice the files' bytes. All processes share the machine's cores, so read the ratios.
"""

import argparse
import asyncio
import dataclasses
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from benchmarks.loading import CONFIG, write_checkpoint
from tests.workers.harness import Worker, Workers, workers
from wire.protocol import Abort, SamplingParams
from workers.config import WorkerConfig

_GAPS = 100
_ANSWER = 4000
_Channel = Literal["auto", "gloo"]


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values, 0 to 1, do not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


class Bench:
    """Starts workers, and prints a line for each start and each stream."""

    def __init__(self, started: Workers, folder: Path) -> None:
        self._started = started
        self._config = WorkerConfig(
            str(folder), dtype="float32", slots=4, max_step_tokens=64, max_model_len=_ANSWER + 96, pages=64
        )
        self._cold = 0.0
        self._alone = 0.0

    async def source(self) -> Worker:
        """Start a worker that keeps running."""
        return await self._started.start(self._config, "decode", live=[])

    async def start(self, what: str, lender: Worker | None, channel: _Channel = "auto") -> None:
        """Start a worker, print the seconds until it takes requests, and close it.

        what: names the line. lender: the worker to load weights from; None for disk. channel: how weights are moved.
        """
        begun = time.perf_counter()
        live = [] if lender is None else [lender.info]
        worker = await self._started.start(dataclasses.replace(self._config, channel=channel), "decode", live=live)
        taken = time.perf_counter() - begun
        self._started.all.remove(worker)
        worker.running.cancel()
        await worker.leader.close()
        self._cold = self._cold or taken
        print(f"{what:>40} {taken:>7.2f} s {self._cold / taken:>6.2f} x", flush=True)

    async def gaps(self, what: str, source: Worker, starts: Worker | None, channel: _Channel | None) -> None:
        """Print the gaps between tokens of a stream of `source` while another worker starts.

        starts: the worker from which that one loads its weights; None for disk. channel: how weights are moved; None to
        measure while no worker starts.
        """
        gaps: list[float] = []
        async with self._stream(source, gaps):
            if channel is None:
                while len(gaps) < _GAPS:
                    await asyncio.sleep(0.05)
            else:
                await self.start(what, starts, channel)
        p50, p99 = percentile(gaps, 0.5) * 1e3, percentile(gaps, 0.99) * 1e3
        self._alone = self._alone or p99
        ratio = p99 / self._alone
        print(
            f"{'tokens, ' + what:>40} p50 {p50:.1f} ms, p99 {p99:.1f} ms, {ratio:.2f} x ({len(gaps)} gaps)", flush=True
        )

    @asynccontextmanager
    async def _stream(self, worker: Worker, gaps: list[float]) -> AsyncIterator[None]:
        sampling = SamplingParams(max_tokens=_ANSWER, min_tokens=_ANSWER, seed=1, temperature=0.0)
        answer = self._started.whole(worker, (5, 6, 7), sampling)
        await answer.tokens(4)

        async def watch() -> None:
            seen, at = len(answer.token_ids), time.perf_counter()
            while True:
                await answer.tokens(seen + 1)
                now, count = time.perf_counter(), len(answer.token_ids)
                gaps.extend([(now - at) / (count - seen)] * (count - seen))
                seen, at = count, now

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()
                worker.caller.send(Abort(answer.request_id))
        await worker.caller.idle(worker.info)


async def measure(folder: Path) -> None:
    """Measure all starts and print them."""
    async with workers() as started:
        bench = Bench(started, folder)
        forget(folder)
        await bench.start("from disk, not in the page cache", None)
        await bench.start("from disk, in the page cache", None)
        source = await bench.source()
        await bench.start("from an idle worker, shared memory", source)
        await bench.start("from an idle worker, gloo", source, "gloo")
        await bench.gaps("nothing else", source, None, None)
        await bench.gaps("a worker starts from disk", source, None, "auto")
        await bench.gaps("one starts from it, shared memory", source, source, "auto")
        await bench.gaps("one starts from it, gloo", source, source, "gloo")


def main() -> None:
    """Write a checkpoint, measure all starts and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=16, help="number of experts; 32 make a checkpoint of 3.5 GB")
    raw = CONFIG | {"num_experts": parser.parse_args().experts}
    with tempfile.TemporaryDirectory() as name:
        size = write_checkpoint(raw, Path(name), shards=4)
        print(f"wrote {size / 1e9:.2f} GB in 4 shards; load of the machine {os.getloadavg()[0]:.1f}\n")
        asyncio.run(measure(Path(name)))


if __name__ == "__main__":
    main()
