"""Tests that the chart's head comes back after it ended under load, with a Redis that keeps its tables."""

from pathlib import Path

import pytest

from tests.deploy.chart import render
from tests.deploy.deployed import Load, deploy
from tests.deploy.ray_nodes import ray_nodes
from tests.deploy.redis import BINARY, PASSWORD, redis

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(400)]

WORKERS = "127.0.0.12"


@pytest.mark.skipif(BINARY is None, reason="no redis-server on PATH: apt-get install redis-server (`.ci/run` does)")
def test_the_chart_s_head_recovers_its_state_from_redis(tmp_path: Path) -> None:
    """As in a pod, `ray start --block` ends with its GCS, and the container is restarted."""
    with redis(tmp_path) as address:
        given = ("headState.storage=redis", f"headState.redis.address={address}", "headState.redis.secretName=redis")
        options = render(*(part for s in given for part in ("--set", s))).cluster["gcsFaultToleranceOptions"]
        # KubeRay makes the head's variables of these options, with a namespace for each RayCluster.
        head = {"RAY_REDIS_ADDRESS": options["redisAddress"], "RAY_external_storage_namespace": "one"}
        with ray_nodes(head | {"RAY_gcs_storage": "redis"}) as nodes:
            own = f"--block --redis-password={PASSWORD}"
            nodes.start_head({}, own)
            nodes.start_worker(WORKERS, {"router": 1, "prefill": 1, "decode": 1})
            cluster = deploy(nodes)
            before, load = cluster.live_decode_worker(), Load(cluster.url)
            with load.running():
                nodes.kill_gcs()
                nodes.wait_for_the_head_s_end()
                answered = load.answered
                nodes.until(lambda: load.answered >= answered + 3, 60)
                nodes.start_head({}, own)
                nodes.until(cluster.serve_is_running, 60)
            assert load.problems == []
            assert cluster.live_decode_worker() == before
