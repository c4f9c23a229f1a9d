"""The last of several programs to arrive goes on with what all of them have stored, in an order of its own."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST = 1 << 12


@lru_cache(maxsize=16)
def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(_MOST, dtype=torch.int32, device=device)


def arrivals(device: torch.device, tiles: int) -> Tensor:
    """int32 zeros for `tiles` counters at least, which every launch leaves as zeros.

    All launches share them, so those of one device run one after another. ValueError for too many tiles.
    """
    if tiles > _MOST:
        raise ValueError(f"{tiles} tiles are too many to split their work, the most is {_MOST}")
    return _zeros(device)


@triton.jit
def is_last(counter: tl.tensor, programs: tl.tensor) -> tl.tensor:
    """Inside kernels: whether this is the last of `programs` to come here; it leaves the counter as it was, 0.

    What the others stored before is then there to read, past the first-level cache (".cg"), which doesn't see what
    other multiprocessors write.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1) == programs - 1
    if last:
        tl.store(counter, 0)
    return last
