"""Products that stay in fp32: the router's scores and the head's logits, from weights of the compute dtype."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import Device, device_of
from kernels.dispatch import dispatch
from kernels.tuning import Config, config

# Elements of the weight that are converted to fp32 at a time, so that the copy stays in a cache.
_CHUNK = 1 << 20
# The share of multiprocessors with work from which a GPU counts as filled.
_FILLED = 0.9


def linear_fp32_reference(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, K] times weight [N, K] transposed, [T, N] fp32; products and sums in fp32. weight: x's dtype or fp32."""
    x = x.float()
    if weight.dtype == torch.float32:
        return F.linear(x, weight)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    rows = max(1, _CHUNK // weight.shape[1])
    for first in range(0, weight.shape[0], rows):
        part = weight[first : first + rows].float()
        torch.mm(x, part.t(), out=out[:, first : first + rows])
    return out


@triton.jit
def fp32_product(
    x: tl.tensor,
    weight: tl.tensor,
    token: tl.tensor,
    output: tl.tensor,
    tokens: tl.tensor,
    outputs: tl.tensor,
    x_stride: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """Inside kernels: rows `token` [M] of x times rows `output` [N] of the weight over inputs begin … end - 1, [M, N].

    begin is a multiple of BLOCK_K; end is one too, or K.
    """
    held, wanted = (token < tokens)[:, None], (output < outputs)[None, :]
    x_at = x + token.to(tl.int64)[:, None] * x_stride
    weight_at = weight + output.to(tl.int64)[None, :] * K
    total = tl.zeros([token.shape[0], output.shape[0]], tl.float32)
    for first in range(begin, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < K) | (K % BLOCK_K == 0)
        a = tl.load(x_at + k[None, :], held & inside[None, :], 0.0).to(weight.dtype.element_ty)
        b = tl.load(weight_at + k[:, None], wanted & inside[:, None], 0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["tokens"])
def _linear_fp32_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    outputs: tl.tensor,
    x_stride: tl.tensor,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    # Programs that share rows of the weight run one after another, so that these are read from memory once.
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = fp32_product(x, weight, token, output, tokens, outputs, x_stride, 0, K, K, BLOCK_K)
    to = out + token.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(to, total, (token < tokens)[:, None] & (output < outputs)[None, :])


def _default(device: Device, tokens: int, outputs: int, itemsize: int) -> Config:
    """The largest tiles that still fill the GPU, with as many stages as its shared memory holds."""
    many = int(_FILLED * device.multiprocessors)
    rows = 16 if tokens <= 16 else 32 if tokens <= 32 else 64
    blocks = -(-tokens // rows)
    columns = next((n for n in (128, 64, 32) if blocks * -(-outputs // n) >= many), 16)
    # A single row of blocks is bound by reading the weight from memory, so it needs more stages.
    deep = (256 if columns <= 32 else 128) // itemsize * 2
    stages = device.stages(rows, 4, (rows + columns) * deep * itemsize)
    return {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": deep, "num_warps": 4, "num_stages": stages}


def linear_fp32_triton(x: Tensor, weight: Tensor, tuned: Config | None = None) -> Tensor:
    """One program per output tile; x's rows need not be adjacent.

    Sums have a fixed order, so ranks agree to the bit.
    """
    tokens, (outputs, size) = x.shape[0], weight.shape
    out = torch.empty(tokens, outputs, dtype=torch.float32, device=x.device)
    if out.numel():
        default = _default(device_of(x), tokens, outputs, weight.element_size())
        launch = tuned or config("linear_fp32", (tokens, outputs, size), default)
        grid = (triton.cdiv(tokens, launch["BLOCK_M"]), triton.cdiv(outputs, launch["BLOCK_N"]))
        _linear_fp32_kernel[grid](x, weight, out, tokens, outputs, x.stride(0), K=size, **launch)
    return out


linear_fp32 = dispatch(linear_fp32_reference, linear_fp32_triton)
