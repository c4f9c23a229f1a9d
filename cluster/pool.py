"""A worker as a Serve replica. The replica is the leader; its ranks are processes beside it on the same node."""

import asyncio
import functools
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster.config import ClusterConfig
from cluster.costs import costs_of
from cluster.entries import ENTER_EVERY_S, Failure, Listing
from cluster.gpus import SEES_ALL_GPUS, assigned_gpus
from cluster.loopback import close_side_door
from cluster.metrics import Bridge
from cluster.metrics_limit import limit_of
from cluster.resolve import Resolved, log_settings, worker_config
from cluster.secret import cluster_secret
from cluster.sizing import PromptRate, asked
from cluster.starting import Start
from wire.logs import describe, set_up
from wire.metrics.recorder import Reading
from wire.progress import Progress, Starting
from wire.protocol import Role, WorkerInfo
from workers.config import WorkerConfig
from workers.leader.leader import Leader
from workers.leader.ranks import Launch
from workers.leader.start import start_leader
from workers.local import FORK_SERVER, ForkServer, fork_launcher

_LEADER_CPUS = 0.01
_CALL_S = 2.0
# Time for in-stream errors to reach the routers before the process ends.
_CLOSE_S = 2.0
_IDLE_POLL_S = 0.05
_LOG = logging.getLogger(__name__)


def actor_options(config: ClusterConfig, role: Role) -> dict[str, Any]:
    """The resources that a worker asks of Ray for its leader and all its ranks, which run on one node."""
    pool, cuda = config.pool(role), config.device == "cuda"
    return {
        "num_cpus": round(_LEADER_CPUS + pool.tp * config.rank_cpus, 4),
        "num_gpus": pool.tp if cuda else 0,
        "resources": pool.resources,
        "runtime_env": SEES_ALL_GPUS if cuda else {},
    }


class Worker:
    """The replica of a leader. It is in the directory while it serves, and ends its process if a rank ends."""

    async def __init__(self, resolved: Resolved, role: Role, directory: Any) -> None:  # type: ignore[misc] # Serve awaits it
        close_side_door()
        self._directory = directory
        self._role: Role = role
        self._drain_s = resolved.config.drain_s
        self._rate = PromptRate()
        self._worker_id = f"{role}-{serve.get_replica_context().replica_id.unique_id}"
        set_up(log_settings(resolved.config), worker=self._worker_id)
        began = time.monotonic()
        self._starting = Start(self._tell_start, resolved.config.load_stall_s)
        try:
            await self._starting.run(self._start(resolved))
        except Exception as error:
            await self._report(f"did not start: {describe(error)}")
            raise
        self._start_s = time.monotonic() - began
        self._running = asyncio.create_task(self._run())
        self._entering = asyncio.create_task(self._enter())
        self._telling = asyncio.create_task(Bridge(self._figures, {}).run())
        self._drained: asyncio.Task[None] | None = None
        self._leader.on_drain = self._drain

    async def _start(self, resolved: Resolved) -> None:
        """Load the weights from a live worker, else from storage; a remote checkpoint is fetched only then."""
        origin = resolved.origin
        if origin is not None:
            resolved = resolved.moved((await asyncio.to_thread(origin.description)).folder)
        self._costs = costs_of(resolved.config, resolved.model)
        config = worker_config(resolved, self._role, ray.util.get_node_ip_address(), cluster_secret())
        self._limit = limit_of(resolved.model, resolved.config.card, config.tp)
        # Under `ling serve` the machine's workers share one fork server.
        self._forks = os.environ.get(FORK_SERVER) or ForkServer(Path(tempfile.mkdtemp(prefix="ling-"))).address
        fetched = origin is not None and config.load != "synthetic"
        tell = self._starting.tell
        storage = functools.partial(asyncio.to_thread, origin.weights, tell) if origin is not None and fetched else None
        self._leader = await start_leader(config, self._made, await self._live(), storage)

    def _made(self, config: WorkerConfig) -> tuple[Leader, Launch]:
        self._config = config
        launch = fork_launcher(config, self._worker_id, self._forks, assigned_gpus())
        leader = Leader(config, self._worker_id, self._role)
        leader.on_progress = self._starting.tell
        return leader, launch

    async def _tell_start(self, progress: Progress, still_s: float) -> None:
        node = socket.gethostname()
        starting = Starting(self._worker_id, self._role, node, progress, round(still_s, 1))
        await _within(self._directory.start.remote(starting), _CALL_S, "telling the directory of the start")

    async def _live(self) -> tuple[WorkerInfo, ...]:
        """The workers that serve now; none while the directory does not answer."""
        try:
            listing: Listing = await asyncio.wait_for(_awaited(self._directory.watch.remote("")), _CALL_S)
        except Exception as error:
            _LOG.warning("which workers there are is not known: %s", describe(error))
            return ()
        return listing.workers

    def _figures(self) -> Iterator[Reading]:
        leader = self._leader
        if self._limit is not None:
            leader.figures.limit(self._limit.reached(leader.figures.totals))
        leader.figures.started(self._start_s)
        return leader.readings()

    async def _run(self) -> None:
        try:
            await self._leader.run()
        except Exception as error:
            _LOG.exception("worker %s ends", self._worker_id)
            self._entering.cancel()
            closing = _within(self._leader.close(), _CLOSE_S, "closing the worker")
            await asyncio.gather(closing, self._report(describe(error)))
            # Serve replaces a replica whose process is gone at once, but one that fails its health check only after
            # three checks.
            os._exit(1)

    async def _enter(self) -> None:
        while True:
            await _within(self._directory.enter.remote(self._leader.info), _CALL_S, "entering the directory")
            await asyncio.sleep(ENTER_EVERY_S)

    async def _report(self, reason: str) -> None:
        failure = Failure(self._worker_id, self._role, reason)
        await _within(self._directory.fail.remote(failure), _CALL_S, "telling the directory of the failure")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve calls this and hands the result to the pool's autoscaling policy."""
        leader = self._leader
        load = leader.load
        rate = self._rate.of(sum(load.misses), load.missed_tokens, time.monotonic())
        return asdict(asked(leader.info, load, self._costs, rate))

    async def check_health(self) -> None:
        """Serve calls this; a leader whose loop hangs does not answer."""

    async def __del__(self) -> None:
        """Take no more work, give running requests `drain_s` seconds to end, then end the rest with an error event."""
        self._entering.cancel()
        # When the whole application ends, the directory may be gone already, so nothing waits for its answer.
        leaving = asyncio.create_task(self._leave_and_hand_over())
        await _within(self._idle(), self._drain_s, "waiting for running requests")
        self._running.cancel()
        self._telling.cancel()
        await _within(self._leader.close(), _CLOSE_S, "closing the worker")
        leaving.cancel()

    async def _leave_and_hand_over(self) -> None:
        await self._leave()
        await self._hand_over()

    async def _leave(self) -> None:
        """Take no more work."""
        self._entering.cancel()
        await _within(self._directory.leave.remote(self._worker_id), _CALL_S, "leaving the directory")

    async def _hand_over(self) -> None:
        """Have answers go on at others once there are any; until then they have the time to end here."""
        own = self._leader.info
        # A roll-out may replace the directory as well: a new one knows no workers at first.
        while not any(
            other.role in (own.role, "decode")
            and other.weights_id == own.weights_id
            and other.worker_id != own.worker_id
            for other in await self._live()
        ):
            await asyncio.sleep(ENTER_EVERY_S)
        self._leader.drain()

    def _drain(self) -> None:
        """An operator wants the worker to end."""
        if self._drained is None:
            self._drained = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await self._leave()
        handing_over = asyncio.create_task(self._hand_over())
        await _within(self._idle(), self._drain_s, "waiting for running requests")
        handing_over.cancel()
        self._running.cancel()
        await _within(self._leader.close(), _CLOSE_S, "closing the worker")
        _LOG.info("worker %s was drained and ends", self._worker_id)
        # Serve starts another worker in its place.
        os._exit(0)

    async def _idle(self) -> None:
        while not self._leader.idle:
            await asyncio.sleep(_IDLE_POLL_S)


async def _within(call: Any, seconds: float, what: str) -> None:
    """Wait at most this long. A failure is logged under the name `what`, and the worker continues."""
    try:
        await asyncio.wait_for(_awaited(call), seconds)
    except TimeoutError:
        _LOG.warning("%s: not done within %g s", what, seconds)
    except Exception as error:
        _LOG.warning("%s: %s", what, describe(error))


async def _awaited(call: Any) -> Any:
    return await call
