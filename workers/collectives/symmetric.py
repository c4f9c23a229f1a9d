"""Collectives that sum small tensors through memory which GPUs of one host share, and use NCCL otherwise."""

import torch
from torch import Tensor

from workers.collectives.torch_dist import TorchCollectives

_GROUP = "ling-ranks"
# The largest tensor in bytes. The kernel reads every rank's whole tensor; for larger ones a ring moves less.
MOST_BYTES = 512 << 10
# The bytes that the kernel loads at a time.
_WORD_BYTES = 16


def fits(tensor: Tensor) -> bool:
    """Whether a tensor's sum goes through shared memory."""
    size = tensor.numel() * tensor.element_size()
    return 0 < size <= MOST_BYTES and size % _WORD_BYTES == 0 and tensor.dtype in (torch.float32, torch.bfloat16)


class SymmetricCollectives(TorchCollectives):
    """NCCL, except that `all_reduce` of a tensor that `fits` is one kernel on torch's symmetric memory.

    ValueError before anything is set up on a GPU older than Hopper. A peer that dies inside that kernel leaves it
    waiting; the leader, which sees the death at once, ends the worker's processes.
    """

    def __init__(self, rank: int, size: int, host: str, port: int, device: torch.device) -> None:
        found = torch.cuda.get_device_capability(device)
        if found < (9, 0):
            raise ValueError(
                f"collectives 'symm' need GPUs of compute capability 9.0 or more, found {found[0]}.{found[1]}; use nccl"
            )
        super().__init__("nccl", rank, size, host, port, device)
        self._shared: Tensor
        self._guarded("share memory", lambda: self._share(device))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if not fits(tensor):
            return super().all_reduce(tensor)
        mine = self._shared[: tensor.numel() * tensor.element_size()].view(tensor.dtype)
        mine.copy_(tensor.reshape(-1))
        # Ranks wait for each other before and after reading, so the memory is free again when the kernel ends.
        total: Tensor = torch.ops.symm_mem.one_shot_all_reduce(mine, "sum", _GROUP)
        return total.view(tensor.shape)

    def _share(self, device: torch.device) -> None:
        from torch._C._distributed_c10d import _SymmetricMemory  # noqa: PLC0415

        _SymmetricMemory.set_group_info(_GROUP, self.rank, self.size, self._store)
        self._shared = _SymmetricMemory.empty_strided_p2p((MOST_BYTES,), (1,), torch.uint8, device, _GROUP)
        _SymmetricMemory.rendezvous(self._shared)
