"""What a kernel's launch depends on of the GPU it runs on: memory a block may use, multiprocessors, number formats."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

# Of the shared memory a block may use, kernels' own bookkeeping (barriers, reductions) takes a little.
_SLACK = 4096
# 8-bit floats (e4m3) exist from this compute capability on.
_FP8 = (8, 9)


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of GPU. capability: (major, minor). shared: bytes a block may use. multiprocessors: how many it has."""

    name: str
    capability: tuple[int, int]
    shared: int
    multiprocessors: int

    def fits(self, rows: int, stages: int, each: int, fixed: int = 0) -> bool:
        """Whether a block has room for a pipelined loop: `stages` tiles of `each` bytes under way, and `fixed` beside.

        Hopper's and data-centre Blackwell's matrix units read tiles of 64 rows and more where they were loaded to, so
        each stage has a tile of its own there; elsewhere the one in use lies in registers.
        """
        held = stages if self.capability[0] in (9, 10) and rows >= 64 else max(stages - 1, 1)
        return held * each + fixed + _SLACK <= self.shared

    def stages(self, rows: int, wanted: int, each: int, fixed: int = 0) -> int:
        """The most stages up to `wanted` that fit; 1 if none does, which leaves it to the compiler to refuse."""
        return next((n for n in range(wanted, 1, -1) if self.fits(rows, n, each, fixed)), 1)


# What kernels are compiled for without a GPU, and launches counted: an H200.
H200 = Device("NVIDIA H200", (9, 0), 232448, 132)
# Stands for every device while it is set: for compiling and counting without a GPU.
assumed: Device | None = None


def device_of(tensor: torch.Tensor) -> Device:
    """The GPU a tensor lies on; an H200's figures for a tensor elsewhere, where nothing but tests launch kernels."""
    if assumed is not None:
        return assumed
    return _properties(tensor.get_device()) if tensor.is_cuda else H200


@lru_cache(maxsize=16)
def _properties(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    # The limit that Triton itself holds a launch to, which torch's stable interface does not tell.
    shared = int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])
    return Device(found.name, (found.major, found.minor), shared, found.multi_processor_count)


def without_fp8(device: Device) -> str | None:
    """Why a GPU can't serve FP8 weights, and what would do; None if it can."""
    if device.capability >= _FP8:
        return None
    major, minor = device.capability
    return (
        f"{device.name} has no 8-bit floats (compute capability {major}.{minor}, they begin with 8.9) and can't serve "
        "FP8 weights: serve the BF16 or INT4 release on it, or FP8 on an L40S, H100, H20, H200, B200 or a newer card"
    )
