"""A worker as a Serve replica: the replica is the leader, its ranks are processes beside it on the same node."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster.config import ClusterConfig
from cluster.entries import ENTER_EVERY_S, Failure
from cluster.loopback import close_side_door
from cluster.metrics import Bridge
from cluster.metrics_limit import limit_of
from cluster.resolve import Resolved, worker_config
from cluster.scaling import DEMAND, demand
from cluster.secret import cluster_secret
from wire.logs import set_up
from wire.metrics.recorder import Reading
from wire.protocol import Role
from workers.leader.leader import Leader
from workers.local import FORK_SERVER, ForkServer, fork_launcher

_LEADER_CPUS = 0.01
_CALL_S = 2.0
# For in-stream errors to reach the routers before the process is gone.
_CLOSE_S = 2.0
_IDLE_POLL_S = 0.05
_LOG = logging.getLogger(__name__)


def actor_options(config: ClusterConfig, role: Role) -> dict[str, Any]:
    """What a worker asks of Ray for its leader and all its ranks, which stand on one node with it."""
    pool = config.pool(role)
    return {
        "num_cpus": round(_LEADER_CPUS + pool.tp * config.rank_cpus, 4),
        "num_gpus": pool.tp if config.device == "cuda" else 0,
        "resources": pool.resources,
    }


class Worker:
    """The leader's replica. It enters itself in the directory while it works, and ends its process if a rank ends."""

    async def __init__(self, resolved: Resolved, role: Role, directory: Any) -> None:  # type: ignore[misc] # Serve awaits it
        close_side_door()
        self._directory = directory
        self._role: Role = role
        self._drain_s = resolved.config.drain_s
        self._target = resolved.config.autoscaling
        self._worker_id = f"{role}-{serve.get_replica_context().replica_id.unique_id}"
        self._config = worker_config(resolved, role, ray.util.get_node_ip_address(), cluster_secret())
        set_up(self._config.logs, worker=self._worker_id)
        # Under `ling serve` the machine's workers share one.
        forks = os.environ.get(FORK_SERVER) or ForkServer(Path(tempfile.mkdtemp(prefix="ling-"))).address
        self._leader = Leader(self._config, self._worker_id, role)
        self._limit = limit_of(resolved.model, resolved.config.card, self._config.tp)
        try:
            await self._leader.start(fork_launcher(self._config, self._worker_id, forks))
        except Exception as error:
            await self._report(f"did not start: {error}")
            await _within(self._leader.close(), _CLOSE_S)
            raise
        self._running = asyncio.create_task(self._run())
        self._entering = asyncio.create_task(self._enter())
        self._telling = asyncio.create_task(Bridge(self._figures, {}).run())

    def _figures(self) -> Iterator[Reading]:
        leader = self._leader
        if self._limit is not None:
            leader.figures.limit(self._limit.reached(leader.figures.totals))
        return leader.figures.read(leader.info, leader.load)

    async def _run(self) -> None:
        try:
            await self._leader.run()
        except Exception as error:
            _LOG.exception("worker %s ends", self._worker_id)
            self._entering.cancel()
            await asyncio.gather(_within(self._leader.close(), _CLOSE_S), self._report(str(error)))
            # Serve replaces a replica whose process is gone at once; one that only reports ill, after three checks.
            os._exit(1)

    async def _enter(self) -> None:
        while True:
            await _within(self._directory.enter.remote(self._leader.info), _CALL_S)
            await asyncio.sleep(ENTER_EVERY_S)

    async def _report(self, reason: str) -> None:
        await _within(self._directory.fail.remote(Failure(self._worker_id, self._role, reason)), _CALL_S)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks, and gives it to the pool's autoscaling policy."""
        return {DEMAND: demand(self._leader.info, self._leader.load, self._config.max_step_tokens, self._target)}

    async def check_health(self) -> None:
        """Serve asks; a leader whose loop hangs does not answer."""

    async def __del__(self) -> None:
        """Take no more work, let what runs end, then end it with an error its readers see."""
        self._entering.cancel()
        # When all of the application goes, the directory may be gone already: nothing waits for its answer.
        leaving = asyncio.create_task(_within(self._directory.leave.remote(self._worker_id), _CALL_S))
        await _within(self._idle(), self._drain_s)
        self._running.cancel()
        self._telling.cancel()
        await _within(self._leader.close(), _CLOSE_S)
        leaving.cancel()

    async def _idle(self) -> None:
        while not self._leader.idle:
            await asyncio.sleep(_IDLE_POLL_S)


async def _within(call: Any, seconds: float) -> None:
    """Wait for it so long and no longer; the cluster goes on whether it succeeded or not."""
    try:
        await asyncio.wait_for(_awaited(call), seconds)
    except Exception as error:
        _LOG.warning("%s", error or type(error).__name__)


async def _awaited(call: Any) -> None:
    await call
