"""The experts' feed-forward over the tokens routed to them."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from kernels.device import Device, device_of
from kernels.dispatch import dispatch
from kernels.linear.quantize import Rounded, quantize_fp8
from kernels.linear.quantized import Matrix, operands
from kernels.linear.tiles import FP8_BOTH, MatrixLayout, check_blocks, layout, tile_bytes
from kernels.moe.experts_kernels import combine_kernel, expert_kernel, place_kernel, rank_kernel, starts_kernel
from kernels.pdl import LAUNCH
from kernels.split_k import arrivals
from kernels.swiglu import swiglu_reference
from kernels.tuning import Config, config

# Up to this many bytes of chosen weights, copying them together is cheaper than a call for each expert.
_GATHER_BYTES = 2 << 20
# Up to this number of tokens, every program finds its expert's tokens by itself.
_FEW = 16
_PAIRS = 1024


def moe_experts_reference(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Matrix,
    down: Matrix,
    first_expert: int,
    shared: Tensor | None = None,
    *,
    rounded: Rounded | None = None,
) -> Tensor:
    """Sum over a token's experts of weight * down(swiglu(gate_up(x))), as far as the experts are held here.

    x: [T, D]. ids: [T, k] int64, a token's all different; weights: [T, k] fp32. gate_up: [E, 2I, D] and down:
    [E, D, I] of experts first_expert … first_expert + E - 1; others contribute zero. shared: [T, D], another
    expert's result, of weight 1. Returns [T, D] in x's dtype, summed in fp32. A `BlockFp8` that rounds its inputs is
    multiplied as `linear` does. rounded: `quantize_fp8` of x, where gate_up is such a one and it is known already.
    """
    expert_bytes = (gate_up.shape[1] * gate_up.shape[2] + down.shape[1] * down.shape[2]) * x.element_size()
    if 0 < ids.numel() * expert_bytes <= _GATHER_BYTES:
        routed = _gathered(x, ids, weights, gate_up, down, first_expert, rounded)
    else:
        routed = _by_expert(x, ids, weights, gate_up, down, first_expert, rounded)
    return (routed if shared is None else routed.add_(shared)).to(x.dtype)


def _seen(x: Tensor, matrix: Matrix, rounded: Rounded | None) -> tuple[Tensor, Matrix]:
    return operands(x, matrix) if rounded is None else operands(rounded[0], matrix, rounded[1])


def _gathered(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Matrix, down: Matrix, first: int, rounded: Rounded | None
) -> Tensor:
    """A copy of its expert's weights for each (token, expert) pair, all pairs in one product."""
    count, top_k = ids.shape
    local = ids.flatten() - first
    held = (local >= 0) & (local < gate_up.shape[0])
    # Computing pairs of other ranks with any expert and weight 0 is cheaper than leaving them out.
    local = local.clamp(0, gate_up.shape[0] - 1)
    seen, gate_up = _seen(x, gate_up, rounded)
    chosen = gate_up[local]
    # The vector is left of the matrix, because CPU libraries are several times slower the other way round.
    if count == 1:
        inner = F.linear(seen, chosen.flatten(0, 1)).view(top_k, -1)
    else:
        inner = torch.bmm(seen.repeat_interleave(top_k, 0)[:, None], chosen.transpose(1, 2))[:, 0]
    acted, down = operands(swiglu_reference(inner.to(x.dtype)), down)
    results = torch.bmm(acted[:, None], down[local].transpose(1, 2)).to(x.dtype).view(count, top_k, -1)
    return torch.bmm((weights * held.view(count, top_k))[:, None], results.float())[:, 0]


def _by_expert(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Matrix, down: Matrix, first: int, rounded: Rounded | None
) -> Tensor:
    """Sort pairs by expert, and run each expert over its own."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    chosen, order = ids.flatten().sort(stable=True)
    edges = torch.arange(first, first + gate_up.shape[0] + 1, device=x.device)
    bounds = torch.searchsorted(chosen, edges).tolist()
    pairs = order[bounds[0] : bounds[-1]]
    if not pairs.numel():
        return out
    tokens = pairs // ids.shape[1]
    sizes = [(e, b - a) for e, (a, b) in enumerate(pairwise(bounds)) if b > a]
    seen, gate_up = _seen(x, gate_up, rounded)
    runs = seen.index_select(0, tokens).split_with_sizes([n for _, n in sizes])
    results = []
    for (e, _), rows in zip(sizes, runs, strict=True):
        acted, matrix = operands(swiglu_reference(F.linear(rows, gate_up[e]).to(x.dtype)), down)
        results.append(F.linear(acted, matrix[e]).to(x.dtype))
    return out.index_add_(0, tokens, torch.cat(results).float() * weights.flatten()[pairs, None])


def _default(device: Device, itemsize: int, form: int, tokens: int, mean: float) -> Config:
    """Configured by the mean number of tokens per expert, with as many stages as the GPU's shared memory holds."""
    block_m = 16 if tokens <= _FEW or mean <= 16 else 32 if mean <= 32 else 64 if mean <= 96 else 128
    narrow = block_m <= 32
    block_k = 128 if form == FP8_BOTH.value or narrow else 64
    block_k = block_k // 2 if itemsize == 4 else block_k
    block_n = 64 if block_m == 16 and itemsize < 4 else 128
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "num_warps": 8 if block_m == 128 else 4,
        "num_stages": device.stages(
            block_m, 4 if itemsize < 4 else 2, *tile_bytes(form, itemsize, block_m, block_n, block_k)
        ),
    }


def moe_experts_triton(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Matrix,
    down: Matrix,
    first_expert: int,
    shared: Tensor | None = None,
    tuned: tuple[Config, Config] | None = None,
    rounded: Rounded | None = None,
) -> Tensor:
    """`moe_experts_reference` on a GPU: two grouped products and a weighted sum, each expert's weights read once.

    tuned: configurations of the two products, for the tuner; BLOCK_M is the first's.
    """
    (tokens, width), top_k, experts = x.shape, ids.shape[1], gate_up.shape[0]
    inner_width, pairs = gate_up.shape[1] // 2, tokens * top_k
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    up_form, down_form = layout(gate_up), layout(down)
    first, second = tuned or (
        config(name, (tokens, experts, rows, cols, form.format),
               _default(device_of(x), x.element_size(), form.format, tokens, pairs / experts))
        for name, form, rows, cols in (
            ("moe_gate_up", up_form, 2 * inner_width, width),
            ("moe_down", down_form, width, inner_width),
        )
    )  # fmt: skip
    block_m = 16 if tokens <= _FEW else first["BLOCK_M"]
    second = {**second, "BLOCK_M": block_m}
    first = {**first, "BLOCK_M": block_m}

    most = min(experts, pairs) if tokens > _FEW else pairs
    blocks = most + (pairs - most) // block_m
    ids = ids.contiguous()
    order = _sort(ids, first_expert, experts, blocks, block_m) if tokens > _FEW else (ids, ids)
    routing = {
        "ids": ids,
        "members": order[0],
        "block_experts": order[1],
        "first_expert": first_expert,
        "experts": experts,
        "pairs": pairs,
        "POWER": triton.next_power_of_2(pairs) if tokens <= _FEW else 0,
    }
    if shared is None:
        apart = {"shared": out, "shared_stride": 0, "SHARED": 0}
    else:
        apart = {"shared": shared, "shared_stride": shared.stride(0), "SHARED": 1}
    # For a few tokens, the last of a tile's programs of the down product also computes the sum.
    choices = top_k if tokens <= _FEW else 0
    sums = {"weights": weights.contiguous(), "total": out, "tokens": tokens, **apart}
    inner = torch.empty(pairs, inner_width, dtype=x.dtype, device=x.device)
    _grouped(x, up_form, inner, blocks, {**routing, **sums, **first}, rounded, GATED=True, TOP_K=top_k, CHOICES=0)
    results = torch.empty(pairs, width, dtype=x.dtype, device=x.device)
    _grouped(
        inner, down_form, results, blocks, {**routing, **sums, **second}, None, GATED=False, TOP_K=1, CHOICES=choices
    )
    if not choices:
        block = min(1024, triton.next_power_of_2(width))
        combine_kernel[(tokens, triton.cdiv(width, block))](
            results, ids, sums["weights"], out, first_expert, experts, width, **apart, CHOICES=top_k, BLOCK=block
        )
    return out


def _sort(ids: Tensor, first_expert: int, experts: int, blocks: int, block_m: int) -> tuple[Tensor, Tensor]:
    """Sort pairs by expert, each expert beginning a block.

    Returns 1 + pair of each place and 1 + expert of each block; 0 is none.

    The order of an expert's pairs may differ from run to run; no result depends on it.
    """
    pairs = ids.numel()
    zeros = torch.zeros(blocks * block_m + experts + blocks, dtype=torch.int32, device=ids.device)
    # In this order all begin with the same alignment in every step; a different one would cause another compilation.
    members, counts, block_experts = zeros.split_with_sizes((blocks * block_m, experts, blocks))
    ranks, starts = (torch.empty(n, dtype=torch.int32, device=ids.device) for n in (pairs, experts))
    grid = (triton.cdiv(pairs, _PAIRS),)
    rank_kernel[grid](ids, counts, ranks, pairs, first_expert, experts, BLOCK=_PAIRS)
    starts_kernel[(1,)](counts, starts, experts, BLOCK_M=block_m, POWER=triton.next_power_of_2(experts))
    place_kernel[grid](
        ids, ranks, starts, members, block_experts, pairs, first_expert, experts, BLOCK_M=block_m, BLOCK=_PAIRS
    )
    return members, block_experts


def _grouped(
    x: Tensor,
    form: MatrixLayout,
    out: Tensor,
    blocks: int,
    chosen: dict[str, Any],
    rounded: Rounded | None,
    **fixed: int,
) -> None:
    """Multiply x's rows, with TOP_K pairs per row, by their experts' matrices into out [pairs, ...]."""
    check_blocks(form, chosen)
    both = form.format == FP8_BOTH.value
    # For a few tokens, rounding in every program is cheaper than a separate launch.
    round_here = both and chosen["BLOCK_M"] == 16 and rounded is None
    x = x if x.stride(1) == 1 else x.contiguous()
    if both and not round_here:
        seen, x_scale = quantize_fp8(x) if rounded is None else rounded
    else:
        seen, x_scale = x, x
    columns = out.shape[1] * (2 if fixed["GATED"] else 1)
    described = form.arguments()
    if out.shape[1] % max(form.height, 1):
        # Either the up rows don't begin a block, or a tile may cross into one.
        described["HEIGHT"] = 0
    tiles = triton.cdiv(columns, chosen["BLOCK_N"])
    expert_kernel[(tiles, blocks)](
        seen, x_scale, out, seen.stride(0), columns, **chosen, **fixed, **described,
        arrivals=arrivals(x.device, tiles) if fixed["CHOICES"] else out, K=x.shape[1], ROUND=round_here, **LAUNCH,
    )  # fmt: skip


moe_experts = dispatch(moe_experts_reference, moe_experts_triton)
