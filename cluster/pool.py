"""A worker as a Serve replica: the replica is the leader, its ranks are actors in the same placement group."""

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray import serve
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import ClusterConfig
from cluster.directory import ENTER_EVERY_S
from cluster.entries import Failure
from cluster.loopback import close_side_door
from cluster.metrics import Bridge
from cluster.metrics_limit import limit_of
from cluster.rank import SEES_ALL_GPUS, Rank
from cluster.resolve import Resolved, worker_config
from cluster.scaling import DEMAND, demand
from cluster.secret import cluster_secret
from wire.logs import set_up
from wire.metrics.recorder import Reading
from wire.protocol import Role
from workers.config import Rendezvous
from workers.leader.leader import Leader

_LEADER_CPUS = 0.01
_CALL_S = 2.0
# For in-stream errors to reach the routers before the process is gone.
_CLOSE_S = 2.0
_IDLE_POLL_S = 0.05
_LOG = logging.getLogger(__name__)


def bundles(config: ClusterConfig, role: Role) -> list[dict[str, float]]:
    """A worker's placement group: its leader, with what marks the pool's nodes, then its ranks."""
    return [{"CPU": _LEADER_CPUS} | config.pool(role).resources] + [_rank_resources(config)] * config.pool(role).tp


def _rank_resources(config: ClusterConfig) -> dict[str, float]:
    return {"CPU": config.rank_cpus} | ({"GPU": 1.0} if config.device == "cuda" else {})


def rank_options(resources: dict[str, float]) -> dict[str, Any]:
    """How Ray starts the actor of a rank that takes `resources`."""
    environment = {"env_vars": SEES_ALL_GPUS} if "GPU" in resources else None
    return {
        "num_cpus": resources["CPU"],
        "num_gpus": resources.get("GPU", 0),
        "max_restarts": 0,
        "runtime_env": environment,
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
        self._resources = _rank_resources(resolved.config)
        self._config = worker_config(resolved, role, ray.util.get_node_ip_address(), cluster_secret())
        set_up(self._config.logs, worker=self._worker_id)
        self._leader = Leader(self._config, self._worker_id, role)
        self._limit = limit_of(resolved.model, resolved.config.card, self._config.tp)
        try:
            await self._leader.start(self._launch)
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
        return leader.readings()

    async def _launch(self, rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        """Start a rank in its own bundle; returns when its work has ended, raises if it died, kills if cancelled."""
        placement = PlacementGroupSchedulingStrategy(
            placement_group=get_current_placement_group(), placement_group_bundle_index=rank + 1
        )
        actor = ray.remote(scheduling_strategy=placement, **rank_options(self._resources))(Rank).remote()
        try:
            await actor.run.remote(self._config, self._worker_id, rank, endpoint, rendezvous)
        finally:
            ray.kill(actor)

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
