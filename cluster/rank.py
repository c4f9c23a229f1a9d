"""A rank as an actor. Its own module, so that a rank's process loads nothing of Serve."""

import os

import ray

from wire.logs import set_up
from workers.config import Rendezvous, WorkerConfig

# Ranks share memory between their GPUs (`collectives: symm`), and torch tells GPUs apart by their index: every rank
# sees all GPUs of its node under the same numbers, and uses the one that Ray assigned to it.
SEES_ALL_GPUS = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


class Rank:
    """One rank's process."""

    def run(self, config: WorkerConfig, worker_id: str, rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        """The rank's whole life."""
        from workers.rank.process import rank_main  # noqa: PLC0415 - the leader, which names this class, stays without torch

        set_up(config.logs, worker=worker_id, rank=str(rank))
        assigned = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        gpu = gpu_index(assigned[0], os.environ.get("CUDA_VISIBLE_DEVICES")) if assigned else None
        rank_main(config, worker_id, rank, endpoint, rendezvous, gpu)


def gpu_index(assigned: str, visible: str | None) -> int:
    """Which of the GPUs that CUDA shows this process is the assigned one.

    assigned: as Ray names it, an index or, as `visible` may list it, a UUID. visible: CUDA_VISIBLE_DEVICES, None if
    it is not set. ValueError if the process does not see the GPU.
    """
    if visible is None:
        return int(assigned)
    names = [name.strip() for name in visible.split(",")]
    if assigned not in names:
        raise ValueError(f"Ray assigned GPU {assigned}, and CUDA_VISIBLE_DEVICES of this node is {visible!r}")
    return names.index(assigned)
