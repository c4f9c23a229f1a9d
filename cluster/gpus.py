"""Maps the GPUs that Ray assigned to a worker to the indexes that its ranks' processes see."""

import os
from typing import Any

import ray

# Ranks share memory between their GPUs (`collectives: symm`), and torch tells GPUs apart by their index: every rank
# sees all GPUs of its node under the same numbers, and uses one of those that Ray assigned to its worker.
SEES_ALL_GPUS: dict[str, Any] = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}


def assigned_gpus() -> tuple[int, ...]:
    """The indexes of this actor's GPUs, one for each rank."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(gpu_index(gpu, visible) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"])


def gpu_index(assigned: str, visible: str | None) -> int:
    """The index of the assigned GPU among those that CUDA shows this process.

    assigned: as Ray names it: an index, or a UUID if `visible` lists UUIDs. visible: CUDA_VISIBLE_DEVICES, None if it
    is not set. ValueError if the process does not see the GPU.
    """
    if visible is None:
        return int(assigned)
    names = [name.strip() for name in visible.split(",")]
    if assigned not in names:
        raise ValueError(f"Ray assigned GPU {assigned}, and CUDA_VISIBLE_DEVICES of this node is {visible!r}")
    return names.index(assigned)
