"""How many workers a pool needs, from figures that its workers report to Serve, which starts and drains them."""

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import AutoscalingSection, PoolConfig
from wire.protocol import Load, WorkerInfo

DEMAND = "demand"
# A pool shrinks to where it would have this share of what it is to have: between that and all of it nothing changes.
_SHRINK_TO = 0.85
_BUSY_OVER_S = 5.0
# Serve averages over so long; longer than the 10 s between two reports of a replica, unless its environment says else.
_LOOK_BACK_S = 15.0


class BusyShare:
    """The share of its time that a worker computes, over the last seconds."""

    def __init__(self) -> None:
        self._seconds, self._at, self._share = 0.0, 0.0, 0.0

    def of(self, seconds: float, now: float) -> float:
        """seconds: that it has computed since its start."""
        if now - self._at >= _BUSY_OVER_S:
            self._share = min(1.0, (seconds - self._seconds) / (now - self._at)) if self._at else 0.0
            self._seconds, self._at = seconds, now
        return self._share


def demand(info: WorkerInfo, load: Load, step_tokens: int, target: AutoscalingSection, busy: float) -> float:
    """What is on a worker, in workers that have as much as they are to have: 1 is just right, 2 asks for another.

    busy: the share of its time that it computes. Of a prefill worker that counts, as routers let prompts wait with
    them; a decode worker computes whenever it has a single sequence.
    """
    held = busy / target.busy if info.role == "prefill" else _held(info, load, target)
    return max(_prompts(load, step_tokens, target), held)


def _prompts(load: Load, step_tokens: int, target: AutoscalingSection) -> float:
    """Seconds of prompt that wait, relative to the target."""
    return load.queued_tokens / step_tokens * load.step_s / target.wait_s


def _held(info: WorkerInfo, load: Load, target: AutoscalingSection) -> float:
    """Use of slots or of pages, whichever is fuller; a request that waits for a slot counts as having one."""
    slots = (info.slots - load.free_slots + load.queued) / info.slots
    pages = (info.pages - load.free_pages) / info.pages
    return max(slots, pages) / target.busy


def autoscaling(pool: PoolConfig, target: AutoscalingSection) -> AutoscalingConfig:
    """Serve's settings for a pool with `max_replicas`; bounds and delays are applied by Serve itself."""
    return AutoscalingConfig(
        min_replicas=pool.replicas,
        max_replicas=pool.max_replicas,
        upscale_delay_s=target.upscale_delay_s,
        downscale_delay_s=target.downscale_delay_s,
        look_back_period_s=_LOOK_BACK_S,
        policy=AutoscalingPolicy(policy_function="cluster.scaling:policy"),
    )


def policy(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve calls this every few hundred milliseconds: the pool's size is the sum of all demands."""
    reported = (context.aggregated_metrics or {}).get(DEMAND)
    if not reported:
        return context.target_num_replicas, {}
    return wanted(list(reported.values()), context.target_num_replicas), {}


def wanted(demands: list[float], now: int) -> int:
    """Workers for the sum of demands, 1 at least. now: how many there are.

    A pool grows at once beyond what it is to have, and shrinks only to where it is well below: what makes it grow never
    makes it shrink again, so that a load at the edge moves nothing.
    """
    # A sum that is a whole number but for its last digits asks for no further worker.
    total = sum(demands)
    grown = max(1, math.ceil(total - 1e-6))
    if grown >= now:
        return grown
    return min(now, max(1, math.ceil(total / _SHRINK_TO - 1e-6)))
