"""Ranks that take each other for processes of different hosts, so that snapshots go between them as between hosts."""

import os
from collections.abc import Mapping
from functools import partial

from tests.forks import forked
from tests.workers.harness import Launcher
from workers.config import Rendezvous, WorkerConfig
from workers.leader.ranks import Launch
from workers.rank.process import rank_main
from workers.transfer import negotiation


def apart(environment: Mapping[str, str]) -> Launcher:
    """A launcher of such ranks. environment: variables beside this process's."""
    return partial(_launcher, dict(environment))


def _launcher(environment: dict[str, str], config: WorkerConfig, worker_id: str) -> Launch:
    async def launch(rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        await forked(_rank_main, environment, config, worker_id, rank, endpoint, rendezvous)

    return launch


def _rank_main(
    environment: dict[str, str], config: WorkerConfig, worker_id: str, rank: int, endpoint: str, rendezvous: Rendezvous
) -> None:
    os.environ.update(environment)
    negotiation.machine = lambda: ""
    rank_main(config, worker_id, rank, endpoint, rendezvous, None)
