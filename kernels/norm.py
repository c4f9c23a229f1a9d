"""RMSNorm (Zhang, Sennrich 2019), with and without the residual add before it."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.pdl import LAUNCH, after_previous
from kernels.tuning import Config, config


@lru_cache(maxsize=16)
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=device)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x [..., D] fp32 divided by its root mean square over the last dimension."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # length²/D + eps in one operation: small batches are bound by the number of calls.
    mean_square = torch.addcmul(_constant(eps, x.device), length, length, value=1.0 / x.shape[-1])
    return x * mean_square.rsqrt_()


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, D] normed over D in fp32, cast back to x's dtype, then times weight [D] of that dtype."""
    return unit_rms(x.float(), eps).to(x.dtype) * weight


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), all [T, D]."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


@triton.jit
def normed_row(x: tl.tensor, weight: tl.tensor, size: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """Inside kernels: one row x, zero beyond its `size` channels, normed in fp32, cast, then times weight."""
    x = x.to(tl.float32)
    unit = x * (1.0 / tl.sqrt(tl.sum(x * x) / size + eps))
    return (unit.to(weight.dtype).to(tl.float32) * weight.to(tl.float32)).to(weight.dtype)


@triton.jit
def _rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    x_stride: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < size
    row = tl.load(x + token * x_stride + channel, inside, 0.0)
    scale = tl.load(weight + channel, inside, 0.0)
    tl.store(out + token * size + channel, normed_row(row, scale, size, eps), inside)


@triton.jit
def _add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    size: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    after_previous()
    at = tl.program_id(0).to(tl.int64) * size
    channel = tl.arange(0, BLOCK)
    inside = channel < size
    row = tl.load(x + at + channel, inside, 0.0).to(tl.float32)
    row = (row + tl.load(residual + at + channel, inside, 0.0).to(tl.float32)).to(total.dtype.element_ty)
    scale = tl.load(weight + channel, inside, 0.0)
    tl.store(total + at + channel, row, inside)
    tl.store(out + at + channel, normed_row(row, scale, size, eps), inside)


def row_warps(size: int) -> int:
    """The warps for a row of `size` channels: about 16 values per thread."""
    warps = 1
    while warps < 16 and warps * 512 < size:
        warps *= 2
    return warps


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float, tuned: Config | None = None) -> Tensor:
    """One program per row; x's rows need not be adjacent."""
    tokens, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if tokens:
        launch = tuned or config("rms_norm", (tokens, size), {"num_warps": row_warps(size)})
        block = triton.next_power_of_2(size)
        _rms_norm_kernel[(tokens,)](x, weight, out, size, x.stride(0), eps, BLOCK=block, **launch)
    return out


def add_rms_norm_triton(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, tuned: Config | None = None
) -> tuple[Tensor, Tensor]:
    """One program per row."""
    tokens, size = x.shape
    out, total = torch.empty_like(x), torch.empty_like(x)
    if tokens:
        launch = tuned or config("add_rms_norm", (tokens, size), {"num_warps": row_warps(size)})
        block = triton.next_power_of_2(size)
        _add_rms_norm_kernel[(tokens,)](x, residual, weight, out, total, size, eps, BLOCK=block, **launch, **LAUNCH)
    return out, total


rms_norm = dispatch(rms_norm_reference, rms_norm_triton)
add_rms_norm = dispatch(add_rms_norm_reference, add_rms_norm_triton)
