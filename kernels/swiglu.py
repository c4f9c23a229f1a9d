"""SwiGLU (Shazeer 2020)."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up for x [T, 2I] holding gate, then up; [T, I]."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up
