"""SwiGLU (Shazeer 2020)."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.tuning import Config, config


def swiglu_reference(x: Tensor) -> Tensor:
    """silu(gate) * up for x [..., 2I] holding gate, then up; [..., I]."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@triton.jit
def gated(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """Inside kernels: silu(gate) * up, rounded to the dtype of both after each of the two steps."""
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    return (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def _swiglu_kernel(x: tl.tensor, out: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> None:
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at = channel < size, token * 2 * size + channel
    gate, up = tl.load(x + at, inside, 0.0), tl.load(x + at + size, inside, 0.0)
    tl.store(out + token * size + channel, gated(gate, up), inside)


def swiglu_triton(x: Tensor, tuned: Config | None = None) -> Tensor:
    """One program per row and block of channels."""
    x = x.contiguous()
    size = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], size), dtype=x.dtype, device=x.device)
    if out.numel():
        tokens = out.numel() // size
        launch = tuned or config("swiglu", (tokens, size), {"BLOCK": 1024, "num_warps": 4})
        _swiglu_kernel[(tokens, -(-size // launch["BLOCK"]))](x, out, size, **launch)
    return out


swiglu = dispatch(swiglu_reference, swiglu_triton)
