"""Tests which GPUs a worker's ranks use, if Ray assigns it some and shows it all."""

import json
import os
import subprocess
import sys

import pytest

from cluster.gpus import gpu_index

# GPUs that Ray believes in: nothing here uses them.
_WORKER = """
import json, os, ray
from cluster.parse import parse
from cluster.gpus import assigned_gpus
from cluster.pool import actor_options
class Worker:
    def run(self):
        return os.environ["CUDA_VISIBLE_DEVICES"], assigned_gpus()
ray.init(address="local", num_cpus=3, num_gpus=3, include_dashboard=False, object_store_memory=100 << 20)
options = actor_options(parse({"decode.tp": 2, "prefill.replicas": 0, "device": "cuda"}), "decode")
print(json.dumps(ray.get(ray.remote(**options)(Worker).remote().run.remote())))
"""


def test_the_assigned_gpu_among_those_that_are_visible() -> None:
    assert gpu_index("2", None) == 2
    assert gpu_index("5", "3,5") == 1
    assert gpu_index("GPU-8932f937", "GPU-1f0a, GPU-8932f937") == 1
    with pytest.raises(ValueError, match="Ray assigned GPU 4, and CUDA_VISIBLE_DEVICES of this node is '3,5'"):
        gpu_index("4", "3,5")


@pytest.mark.cluster
def test_ranks_see_all_gpus_of_their_node_and_take_one_each() -> None:
    """Torch's symmetric memory refuses ranks that all have their GPU at index 0."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "3,5,7", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", _WORKER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    visible, gpus = json.loads(done.stdout.splitlines()[-1])
    assert visible == "3,5,7"
    assert len(set(gpus)) == 2
    assert set(gpus) < {0, 1, 2}
