"""Makes the collectives that the device and the setting ask for."""

import torch

from workers.collectives.base import Collectives, Solo
from workers.collectives.shm import ShmCollectives
from workers.collectives.symmetric import SymmetricCollectives
from workers.collectives.torch_dist import TorchCollectives
from workers.config import Rendezvous


def make_collectives(kind: str, rank: int, size: int, rendezvous: Rendezvous, device: torch.device) -> Collectives:
    """Meet the other ranks and return the group. Blocks until all ranks have joined; RankLost if one does not.

    kind: "shm" (processes of one host), "gloo", "nccl", "symm" (NCCL, small sums through GPUs' shared memory), or
    "auto": NCCL on GPUs, else shared memory. A group of one rank returns at once.
    """
    if size == 1:
        return Solo()
    if kind == "auto":
        kind = "nccl" if device.type == "cuda" else "shm"
    match kind:
        case "shm" if device.type == "cpu":
            return ShmCollectives(rank, size, rendezvous.folder)
        case "gloo" if device.type == "cpu":
            return TorchCollectives("gloo", rank, size, rendezvous.host, rendezvous.port, device)
        case "nccl" if device.type == "cuda":
            return TorchCollectives("nccl", rank, size, rendezvous.host, rendezvous.port, device)
        case "symm" if device.type == "cuda":
            return SymmetricCollectives(rank, size, rendezvous.host, rendezvous.port, device)
        case "shm" | "gloo" | "nccl" | "symm":
            raise ValueError(f"collectives {kind!r} do not work on {device.type}; use 'auto'")
        case _:
            raise ValueError(f"collectives must be auto, shm, gloo, nccl or symm, not {kind!r}")
