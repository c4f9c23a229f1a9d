"""A completion counter for split-K products: the last program reduces all partial results in a fixed order."""

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
    """At least `tiles` int32 counters of zero, which every launch resets to zero.

    All launches share them, so those of one device run one after another. ValueError for too many tiles.
    """
    if tiles > _MOST:
        raise ValueError(f"{tiles} tiles are too many to split their work, the most is {_MOST}")
    return _zeros(device)


@triton.jit
def is_last(counter: tl.tensor, programs: tl.tensor) -> tl.tensor:
    """Inside kernels: whether this is the last of `programs` to arrive; it resets the counter to 0.

    It can then read the other programs' results, bypassing the first-level cache (".cg"), which doesn't see the writes
    of other multiprocessors.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1) == programs - 1
    if last:
        tl.store(counter, 0)
    return last
