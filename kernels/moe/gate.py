"""The MoE gate: scores of all experts, and the choice among them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import Device, device_of
from kernels.dispatch import dispatch
from kernels.linear.fp32 import fp32_product, linear_fp32_reference, linear_fp32_triton
from kernels.moe.route import choice, choose, chosen, route_reference, route_triton
from kernels.pdl import LAUNCH, after_previous
from kernels.split_k import arrivals, is_last
from kernels.tuning import Config, config

# Up to this number of tokens, one program can choose for all of them.
_FEW = 16
# The number of scores that fit into a warp's registers.
_ONE_WARP = 512


def moe_gate_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    top_groups: int,
    top_k: int,
    scale: float,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """`route` of the scores `linear_fp32(x, weight)`. x: [T, K]. weight: [E, K] in x's dtype or fp32."""
    return route_reference(linear_fp32_reference(x, weight), bias, groups, top_groups, top_k, scale, shared)


@triton.jit(do_not_specialize=["tokens"])
def _moe_gate_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    partial: tl.tensor,
    arrivals: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    tokens: tl.tensor,
    x_stride: tl.tensor,
    scale: tl.tensor,
    K: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    SHARED: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
) -> None:
    """BLOCK_N experts' scores over one of SPLIT runs of inputs.

    The last program adds up all runs in order, and chooses.

    partial: [SPLIT, TOKENS, E] fp32, TOKENS a power of two.
    """
    after_previous()
    EXPERTS: tl.constexpr = GROUPS * SIZE
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    RUN: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT * BLOCK_K
    split = tl.program_id(1)
    # The matrix units take no fewer than 16 rows.
    row = tl.arange(0, 16)
    expert = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.minimum(split * RUN + RUN, K)
    score = fp32_product(x, weight, row, expert, tokens, EXPERTS, x_stride, split * RUN, end, K, BLOCK_K)
    at = partial + (split * TOKENS + row)[:, None] * EXPERTS + expert[None, :]
    tl.store(at, score, (row < tokens)[:, None] & (expert < EXPERTS)[None, :])
    if is_last(arrivals, tl.num_programs(0) * SPLIT):
        token = tl.arange(0, TOKENS)
        group, member = tl.arange(0, GROUP_BLOCK)[None, :, None], tl.arange(0, SIZE_BLOCK)[None, None, :]
        held = (token < tokens)[:, None, None] & (group < GROUPS) & (member < SIZE)
        part = partial + token[:, None, None] * EXPERTS + group * SIZE + member
        logits = tl.zeros([TOKENS, GROUP_BLOCK, SIZE_BLOCK], tl.float32)
        for i in range(SPLIT):
            logits += tl.load(part + i * TOKENS * EXPERTS, held, 0.0, cache_modifier=".cg")
        choose(logits, bias, ids, weights, token, tokens, scale, GROUPS, SIZE, TOP_GROUPS, TOP_K, SHARED, TOP_BLOCK)


def _default(device: Device, tokens: int, experts: int, size: int, itemsize: int) -> Config:
    """Runs so short that together they fill the GPU, but of at least two steps.

    One warp for a few tokens, because the choice is a chain of reductions in which warps would wait for each other.
    """
    columns, deep = 16, 256 // itemsize
    split = 1
    while triton.cdiv(experts, columns) * split * 2 <= device.multiprocessors and size >= split * 4 * deep:
        split *= 2
    warps = 1 if tokens * experts <= _ONE_WARP else 4
    return {"BLOCK_N": columns, "BLOCK_K": deep, "SPLIT": split, "num_warps": warps, "num_stages": 4}


def moe_gate_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    top_groups: int,
    top_k: int,
    scale: float,
    shared: bool = False,
    tuned: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """One launch for few tokens. Sums have a fixed order, so ranks agree to the bit."""
    tokens, (experts, size) = x.shape[0], weight.shape
    if not 0 < tokens <= _FEW:
        return route_triton(linear_fp32_triton(x, weight), bias, groups, top_groups, top_k, scale, shared)
    ids, weights = chosen(tokens, top_k, shared, x.device)
    default = _default(device_of(x), tokens, experts, size, weight.element_size())
    launch = tuned or config("moe_gate", (tokens, experts, size), default)
    padded = triton.next_power_of_2(tokens)
    partial = torch.empty(launch["SPLIT"], padded, experts, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(experts, launch["BLOCK_N"]), launch["SPLIT"])
    _moe_gate_kernel[grid](
        x, weight, bias, partial, arrivals(x.device, 1), ids, weights, tokens, x.stride(0), scale,
        K=size, TOKENS=padded, **choice(experts, groups, top_groups, top_k, shared), **launch, **LAUNCH,
    )  # fmt: skip
    return ids, weights


moe_gate = dispatch(moe_gate_reference, moe_gate_triton)
