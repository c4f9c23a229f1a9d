"""How many workers a pool needs, by the figures its workers report to Serve, which then starts and drains them."""

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import AutoscalingSection, PoolConfig
from wire.protocol import Load, WorkerInfo

DEMAND = "demand"
# Serve averages over so long; longer than the 10 s between two reports of a replica, unless its environment says else.
_LOOK_BACK_S = 15.0


def demand(info: WorkerInfo, load: Load, step_tokens: int, target: AutoscalingSection) -> float:
    """What is on a worker, in workers that have as much as they are to have: 1 is just right, 2 asks for another."""
    return max(_prompts(load, step_tokens, target), 0.0 if info.role == "prefill" else _held(info, load, target))


def _prompts(load: Load, step_tokens: int, target: AutoscalingSection) -> float:
    """Seconds of prompt that wait, over those that may."""
    return load.queued_tokens / step_tokens * load.step_s / target.wait_s


def _held(info: WorkerInfo, load: Load, target: AutoscalingSection) -> float:
    """The fuller of slots and pages; who waits for a slot counts as having one."""
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
    """Serve asks, every few hundred milliseconds: as many workers as all demands add up to."""
    reported = (context.aggregated_metrics or {}).get(DEMAND)
    if not reported:
        return context.target_num_replicas, {}
    return wanted(list(reported.values())), {}


def wanted(demands: list[float]) -> int:
    """Workers for the sum of demands, and 1 for none."""
    # A sum that is a whole number but for its last digits asks for no further worker.
    return max(1, math.ceil(sum(demands) - 1e-6))
