"""The properties of a GPU on which kernel launches depend: memory of a block, multiprocessors, number formats."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

# The share of a block's shared memory that kernels' bookkeeping (barriers, reductions) leaves.
_SLACK = 4096
# 8-bit floats (e4m3) exist from this compute capability on.
_FP8 = (8, 9)


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of GPU. capability: (major, minor). shared: bytes that a block may use.

    multiprocessors: their number.
    """

    name: str
    capability: tuple[int, int]
    shared: int
    multiprocessors: int

    def fits(self, rows: int, stages: int, each: int, fixed: int = 0) -> bool:
        """Whether a block has room for a pipelined loop of `stages` tiles of `each` bytes, and `fixed` bytes more.

        Hopper's and data-centre Blackwell's matrix units read tiles of 64 rows and more from shared memory, so each
        stage needs its own tile there; elsewhere the tile in use is in registers.
        """
        held = stages if self.capability[0] in (9, 10) and rows >= 64 else max(stages - 1, 1)
        return held * each + fixed + _SLACK <= self.shared

    def stages(self, rows: int, wanted: int, each: int, fixed: int = 0) -> int:
        """The largest number of stages up to `wanted` that fits; 1 if none fits, so that the compiler refuses."""
        return next((n for n in range(wanted, 1, -1) if self.fits(rows, n, each, fixed)), 1)


# The device for which kernels are compiled and launches counted without a GPU: an H200.
H200 = Device("NVIDIA H200", (9, 0), 232448, 132)
# Replaces every device while it is set, to compile and count without a GPU.
assumed: Device | None = None


def device_of(tensor: torch.Tensor) -> Device:
    """The GPU that holds a tensor; for a tensor elsewhere an H200, because only tests launch kernels there."""
    if assumed is not None:
        return assumed
    return _properties(tensor.get_device()) if tensor.is_cuda else H200


@lru_cache(maxsize=16)
def _properties(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    # Triton's own limit for a launch, which torch's stable interface does not tell.
    shared = int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])
    return Device(found.name, (found.major, found.minor), shared, found.multi_processor_count)


def without_fp8(device: Device) -> str | None:
    """The reason why a GPU can't serve FP8 weights, with alternatives; None if it can."""
    if device.capability >= _FP8:
        return None
    major, minor = device.capability
    return (
        f"{device.name} has no 8-bit floats (compute capability {major}.{minor}, they begin with 8.9) and can't serve "
        "FP8 weights: serve the BF16 or INT4 release on it, or FP8 on an L40S, H100, H20, H200, B200 or a newer card"
    )
