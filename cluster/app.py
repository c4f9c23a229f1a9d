"""The Serve application: `serve run cluster.app:build model=DIR decode.replicas=2`, or `serve deploy`."""

from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.serve import Application

from cluster.checkpoint import check_files
from cluster.config import ClusterConfig
from cluster.directory import Directory
from cluster.ingress import Router
from cluster.parse import parse
from cluster.pool import Worker, actor_options
from cluster.resolve import Resolved, resolve
from cluster.scaling import autoscaling
from wire.protocol import Role

# Serve lets 5 requests run at a replica by default; here the router's own admission decides.
_NO_LIMIT = 100_000
_LIGHT = {"num_cpus": 0.01}
# It runs beside Serve's controller, on a node that stays. A head that offers no CPU accepts it too.
_ON_HEAD = {"num_cpus": 0, "resources": {HEAD_NODE_RESOURCE_NAME: 0.001}}
_LOGGING = {"enable_access_log": False}
# Seconds in addition to draining, to end streams, ranks and connections.
_CLOSING_S = 10.0


def build(args: dict[str, Any]) -> Application:
    """The application for settings as `cluster.config.ClusterConfig` names them; ConfigError if they are invalid.

    For a checkpoint that is stored elsewhere, only its description is fetched here (FetchError); each worker fetches
    the weights.
    """
    config = parse(args)
    resolved = resolve(config, gpus())
    check_files(config, Path(resolved.model), weights=resolved.origin is None)
    return application(resolved)


def gpus() -> float:
    """The GPUs of the Ray cluster to which this process is connected; 0 without one."""
    return float(ray.cluster_resources().get("GPU", 0)) if ray.is_initialized() else 0.0


def application(resolved: Resolved) -> Application:
    """Make the application: routers in front, two pools of workers behind, and a directory between them."""
    config = resolved.config
    directory = serve.deployment(
        Directory,
        name="Directory",
        ray_actor_options=_ON_HEAD,
        max_ongoing_requests=_NO_LIMIT,
        logging_config=_LOGGING,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=1.0,
    ).bind()
    workers = [_pool(resolved, role, directory) for role in _roles(config)]
    router = serve.deployment(
        serve.ingress()(Router),
        name="Router",
        num_replicas=config.router.replicas,
        ray_actor_options=_LIGHT | {"resources": config.router.resources},
        max_ongoing_requests=_NO_LIMIT,
        logging_config=_LOGGING,
        # A router needs no GPU, so its successor fits beside it and shares its port.
        max_surge_percent=_surge(config, 100),
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=config.drain_s + _CLOSING_S,
    )
    # The pools are arguments so that Serve deploys them with the application; routers reach them by socket.
    return router.bind(resolved, directory, workers)


def _surge(config: ClusterConfig, unset: int) -> int:
    """How many extra replicas, in percent of their number, Serve may start before it ends those they replace."""
    return unset if config.surge is None else config.surge


def _roles(config: ClusterConfig) -> list[Role]:
    return ["prefill", "decode"] if config.prefill.replicas else ["decode"]


def _size(config: ClusterConfig, role: Role) -> dict[str, Any]:
    pool = config.pool(role)
    if pool.max_replicas is None:
        return {"num_replicas": pool.replicas}
    return {"autoscaling_config": autoscaling(role, pool, config.autoscaling)}


def _pool(resolved: Resolved, role: Role, directory: Application) -> Application:
    config = resolved.config
    return serve.deployment(
        Worker,
        name=role.capitalize(),
        **_size(config, role),
        ray_actor_options=actor_options(config, role),
        max_ongoing_requests=_NO_LIMIT,
        logging_config=_LOGGING,
        max_surge_percent=_surge(config, 0 if config.device == "cuda" else 100),
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=config.drain_s + _CLOSING_S,
    ).bind(resolved, role, directory)
