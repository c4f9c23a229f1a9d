"""How many workers a pool needs, from figures that its workers report to Serve, which starts and drains them."""

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import AutoscalingSection, PoolConfig
from wire.protocol import Load, WorkerInfo

DEMAND = "demand"
# Serve averages over so long; longer than the 10 s between two reports of a replica, unless its environment says else.
_LOOK_BACK_S = 15.0


def demand(info: WorkerInfo, load: Load, step_tokens: int, target: AutoscalingSection) -> float:
    """The load of a worker relative to its target: 1 is the target, 2 asks for one more worker."""
    return max(_prompts(load, step_tokens, target), 0.0 if info.role == "prefill" else _held(info, load, target))


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
    return wanted(list(reported.values())), {}


def wanted(demands: list[float]) -> int:
    """Workers for the sum of demands; 1 for no demand."""
    # A sum that exceeds a whole number only by rounding asks for no further worker.
    return max(1, math.ceil(sum(demands) - 1e-6))
