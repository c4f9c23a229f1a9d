"""Ranks as plain child processes: a worker on one machine without Ray."""

import asyncio
import multiprocessing

from workers.config import Rendezvous, WorkerConfig
from workers.leader.ranks import Launch
from workers.rank.process import rank_main


def process_launcher(config: WorkerConfig, worker_id: str) -> Launch:
    """A `Launch` that spawns one process a rank; its awaitable raises when the process failed."""
    context = multiprocessing.get_context("spawn")

    async def launch(rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        process = context.Process(target=rank_main, args=(config, worker_id, rank, endpoint, rendezvous), daemon=True)
        process.start()
        try:
            await asyncio.to_thread(process.join)
        except asyncio.CancelledError:
            process.kill()
            process.join()
            raise
        if process.exitcode:
            raise RuntimeError(f"rank {rank}'s process {process.pid} ended with exit code {process.exitcode}")

    return launch
