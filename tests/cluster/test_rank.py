"""Which GPU a rank takes, where Ray assigns it one and lets it see them all."""

import json
import os
import subprocess
import sys

import pytest

from cluster.rank import gpu_index

# GPUs that Ray believes in: nothing here uses them.
_TWO_RANKS = """
import json, os, ray
from cluster.pool import rank_options
from cluster.rank import gpu_index
class Rank:
    def run(self):
        visible = os.environ["CUDA_VISIBLE_DEVICES"]
        return visible, gpu_index(ray.get_runtime_context().get_accelerator_ids()["GPU"][0], visible)
ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, object_store_memory=100 << 20)
actors = [ray.remote(**rank_options({"CPU": 0.01, "GPU": 1.0}))(Rank).remote() for _ in range(2)]
print(json.dumps(ray.get([actor.run.remote() for actor in actors])))
"""


def test_the_assigned_gpu_among_those_that_are_visible() -> None:
    assert gpu_index("2", None) == 2
    assert gpu_index("5", "3,5") == 1
    assert gpu_index("GPU-8932f937", "GPU-1f0a, GPU-8932f937") == 1
    with pytest.raises(ValueError, match="Ray assigned GPU 4, and CUDA_VISIBLE_DEVICES of this node is '3,5'"):
        gpu_index("4", "3,5")


@pytest.mark.slow
def test_ranks_see_all_gpus_and_take_one_each() -> None:
    """torch's symmetric memory refuses ranks that all call their GPU the first."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "3,5", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", _TWO_RANKS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == [["3,5", 0], ["3,5", 1]]
