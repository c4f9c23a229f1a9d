"""RMSNorm (Zhang, Sennrich 2019), with and without the residual add before it."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=16)
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=device)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x [..., D] fp32 divided by its root mean square over the last dimension."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # length²/D + eps in one operation: small batches are bound by the number of calls.
    mean_square = torch.addcmul(_constant(eps, x.device), length, length, value=1.0 / x.shape[-1])
    return x * mean_square.rsqrt_()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] normed over D in fp32, cast back to x's dtype, then times weight [D]."""
    return unit_rms(x.float(), eps).to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), all [T, D]."""
    total = x + residual
    return rms_norm(total, weight, eps), total
