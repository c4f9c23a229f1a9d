"""y = x W^T for a matrix that may be quantized."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import Device, device_of
from kernels.dispatch import dispatch
from kernels.linear.quantize import quantize_fp8
from kernels.linear.quantized import Matrix, dense, operands, rounds_inputs
from kernels.linear.tiles import FP8_BOTH, check_blocks, layout, product, tile_bytes
from kernels.pdl import LAUNCH, after_previous
from kernels.split_k import arrivals, is_last
from kernels.tuning import Config, config

_SPLIT_STEPS = 4  # with fewer steps per split, splitting the inputs costs more than it gains


def linear_reference(x: Tensor, matrix: Matrix, *, scale: Tensor | None = None) -> Tensor:
    """x [T, in] times a matrix [out, in] transposed: [T, out] in x's dtype, the matrix's compute dtype.

    Sums are fp32. A `BlockFp8` that rounds its inputs is multiplied by x rounded to 8-bit floats, a scale for every
    128 inputs of a token, as the vendor's FP8 path does; every other format's weights become floats of x's dtype.
    scale: x comes as 8-bit floats, with this scale of `quantize_fp8`; for such a matrix alone.
    """
    seen, wide = operands(x, matrix, scale)
    return F.linear(seen, dense(wide)).to(matrix.dtype)


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    arrivals: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    x_stride: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    zeros: tl.tensor,
    row_block: tl.tensor,
    col_block: tl.tensor,
    scale_columns: tl.tensor,
    weight_stride: tl.tensor,
    scale_stride: tl.tensor,
    zeros_stride: tl.tensor,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    HEIGHT: tl.constexpr,
    ROUND: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
) -> None:
    """One tile of the output over one of SPLIT runs of inputs; the last program adds up all runs in order."""
    after_previous()
    tile = tl.program_id(0)
    split = tl.program_id(1)
    # Programs go down GROUP_M blocks of rows before the next columns, so that both operands are reused in the cache.
    m_tiles = tl.cdiv(M, BLOCK_M)
    in_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first_m = tile // in_group * GROUP_M
    height = tl.minimum(m_tiles - first_m, GROUP_M)
    m = (first_m + tile % in_group % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n_start = tile % in_group // height * BLOCK_N
    n = n_start + tl.arange(0, BLOCK_N)
    words = n_start // 8 + tl.arange(0, BLOCK_N // 8)

    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    ALIKE: tl.constexpr = HEIGHT > 0 and HEIGHT % BLOCK_N == 0
    block_row = n_start // HEIGHT if ALIKE else 0
    RUN: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT * BLOCK_K
    acc = product(
        x,
        x_scale,
        tl.minimum(m, M - 1),
        x_stride,
        weight,
        scale,
        zeros,
        row_block,
        col_block,
        scale_columns,
        tl.minimum(n, N - 1),
        tl.minimum(words, N // 8 - 1),
        block_row,
        block_row,
        split * RUN,
        tl.minimum(split * RUN + RUN, K),
        N,
        K,
        FORMAT,
        GROUP,
        ALIKE,
        BLOCK_K,
        ROUND,
    )
    out_at = out + m.to(tl.int64)[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    if SPLIT == 1:
        tl.store(out_at, acc.to(out.dtype.element_ty), mask=inside)
    else:
        place = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        partial += tile * SPLIT * BLOCK_M * BLOCK_N
        tl.store(partial + split * BLOCK_M * BLOCK_N + place, acc)
        if is_last(arrivals + tile, SPLIT):
            total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
            for i in range(SPLIT):
                # `is_last` says why past the first-level cache.
                total += tl.load(partial + i * BLOCK_M * BLOCK_N + place, cache_modifier=".cg")
            tl.store(out_at, total.to(out.dtype.element_ty), mask=inside)


def _default(device: Device, form: int, itemsize: int, tokens: int, outputs: int, inputs: int) -> Config:
    """Small batches stream weights through many programs, two on a multiprocessor; large ones fill the matrix units.

    A tile of 128 rows takes a multiprocessor by itself; while it is the only one of its columns, its inputs are split
    too.
    """
    block_m = min(128, max(16, triton.next_power_of_2(tokens)))
    block_n = 128 if block_m > 16 else 64
    few = tokens <= block_m
    programs = device.multiprocessors * (2 if block_m <= 64 else 1)
    narrowest = 32 if block_m <= 64 else 64
    while few and block_n > narrowest and triton.cdiv(outputs, block_n) < programs:
        block_n //= 2
    block_k = 128 if form == FP8_BOTH.value or block_m <= 32 else 64
    if itemsize == 4:
        block_k = 64 if block_m <= 32 else 32
    tiles = triton.cdiv(tokens, block_m) * triton.cdiv(outputs, block_n)
    split = 1
    while few and tiles * split * 2 <= programs and inputs >= split * 2 * block_k * _SPLIT_STEPS:
        split *= 2
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "SPLIT": split,
        "GROUP_M": 8,
        "num_warps": 8 if block_m == 128 else 4,
        "num_stages": device.stages(
            block_m, 4 if itemsize < 4 else 2, *tile_bytes(form, itemsize, block_m, block_n, block_k)
        ),
    }


def linear_triton(x: Tensor, matrix: Matrix, tuned: Config | None = None, scale: Tensor | None = None) -> Tensor:
    """`linear_reference` on a GPU; a plain matrix goes to the vendor's library. tuned: for the tuner."""
    if scale is not None and not rounds_inputs(matrix):
        raise ValueError("x comes as 8-bit floats, but this matrix multiplies inputs that are not rounded")
    if isinstance(matrix, Tensor):
        return F.linear(x, matrix)
    tokens, inputs, outputs = x.shape[0], x.shape[1], matrix.shape[0]
    out = torch.empty(tokens, outputs, dtype=matrix.dtype, device=x.device)
    if not tokens:
        return out
    form = layout(matrix)
    key = (tokens, outputs, inputs, form.format)
    default = _default(device_of(x), form.format, out.element_size(), tokens, outputs, inputs)
    chosen = tuned or config("linear", key, default)
    check_blocks(form, chosen)
    block_m, block_n, split = chosen["BLOCK_M"], chosen["BLOCK_N"], chosen["SPLIT"]
    tiles = triton.cdiv(tokens, block_m) * triton.cdiv(outputs, block_n)

    both = form.format == FP8_BOTH.value
    # For a few tokens, rounding in every program is cheaper than a separate launch.
    round_here = both and block_m == 16 and scale is None
    x = x if x.stride(1) == 1 else x.contiguous()
    if scale is not None:
        seen, x_scale = x, scale
    else:
        seen, x_scale = quantize_fp8(x) if both and not round_here else (x, x)
    partial = torch.empty(tiles * split * block_m * block_n, device=x.device) if split > 1 else out
    _linear_kernel[(tiles, split)](
        seen,
        x_scale,
        out,
        partial,
        arrivals(x.device, tiles) if split > 1 else out,
        tokens,
        outputs,
        seen.stride(0),
        **form.arguments(),
        K=inputs,
        ROUND=round_here,
        **chosen,
        **LAUNCH,
    )
    return out


linear = dispatch(linear_reference, linear_triton)
