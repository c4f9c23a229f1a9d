"""Sizes pools by what their workers report to Serve, which starts and drains them."""

from dataclasses import asdict, fields
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import AutoscalingSection, PoolConfig
from cluster.metrics import Bridge
from cluster.sizing import Asked, Goals, wanted
from wire.metrics import table
from wire.metrics.recorder import Recorder
from wire.protocol import Role

# How often workers report, and over how long Serve averages.
_EVERY_S, _LOOK_BACK_S = 1.0, 10.0


def autoscaling(role: Role, pool: PoolConfig, section: AutoscalingSection) -> AutoscalingConfig:
    """Serve's settings for a pool with `max_replicas`; bounds and delays are applied by Serve itself."""
    return AutoscalingConfig(
        min_replicas=pool.replicas,
        max_replicas=pool.max_replicas,
        upscale_delay_s=section.upscale_delay_s,
        downscale_delay_s=section.downscale_delay_s,
        metrics_interval_s=_EVERY_S,
        look_back_period_s=_LOOK_BACK_S,
        policy=AutoscalingPolicy(
            policy_function="cluster.scaling:Policy",
            policy_kwargs={"role": role, "goals": asdict(_goals(section))},
        ),
    )


class Policy:
    """One pool's. Serve makes it in its controller, and calls it several times a second."""

    def __init__(self, role: Role, goals: dict[str, float]) -> None:
        self._goals = Goals(**goals)
        recorder = Recorder()
        self._wanted = recorder.value(table.WORKERS_WANTED, role)
        self._bridge = Bridge(recorder.read, {})

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The pool's size. Without figures it stays."""
        size = context.target_num_replicas
        if pool := reported(context.aggregated_metrics or {}):
            size = wanted(pool, size, self._goals)
        self._wanted.put(size)
        self._bridge.hand_over()
        return size, {}


def reported(metrics: dict[str, dict[Any, float]]) -> list[Asked]:
    """What each worker reported, from each figure by worker."""
    names = [field.name for field in fields(Asked)]
    workers = dict.fromkeys(worker for name in names for worker in metrics.get(name, {}))
    return [Asked(**{name: metrics.get(name, {}).get(worker, 0.0) for name in names}) for worker in workers]


def _goals(section: AutoscalingSection) -> Goals:
    return Goals(section.busy, section.first_token_s, section.attained)
