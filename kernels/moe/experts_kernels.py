"""The kernels of the experts' feed-forward, which run over pairs (token, expert) in blocks of one expert.

Pair p is token p // TOP_K with its p % TOP_K-th expert. Blocks are BLOCK_M pairs of one expert.
"""

import triton
import triton.language as tl

from kernels.linear.tiles import AWQ, product
from kernels.pdl import after_previous
from kernels.split_k import is_last
from kernels.swiglu import gated


@triton.jit(do_not_specialize=["pairs"])
def rank_kernel(
    ids: tl.tensor,
    counts: tl.tensor,
    ranks: tl.tensor,
    pairs: tl.tensor,
    first_expert: tl.tensor,
    experts: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Each pair's place among its expert's pairs, and the number of pairs of each expert. counts: zeros before."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + pair, mask=pair < pairs, other=-1).to(tl.int32) - first_expert
    held = (pair < pairs) & (expert >= 0) & (expert < experts)
    rank = tl.atomic_add(counts + expert, 1, mask=held, sem="relaxed")
    tl.store(ranks + pair, rank, mask=held)


@triton.jit
def starts_kernel(
    counts: tl.tensor,
    starts: tl.tensor,
    experts: tl.tensor,
    BLOCK_M: tl.constexpr,
    POWER: tl.constexpr,
) -> None:
    """Each expert's first block."""
    expert = tl.arange(0, POWER)
    count = tl.load(counts + expert, mask=expert < experts, other=0)
    blocks = (count + BLOCK_M - 1) // BLOCK_M
    tl.store(starts + expert, tl.cumsum(blocks, 0) - blocks, mask=expert < experts)


@triton.jit(do_not_specialize=["pairs"])
def place_kernel(
    ids: tl.tensor,
    ranks: tl.tensor,
    starts: tl.tensor,
    members: tl.tensor,
    block_experts: tl.tensor,
    pairs: tl.tensor,
    first_expert: tl.tensor,
    experts: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Scatter pairs into expert blocks, and experts to their blocks; both are 1-based, and 0 is padding."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + pair, mask=pair < pairs, other=-1).to(tl.int32) - first_expert
    held = (pair < pairs) & (expert >= 0) & (expert < experts)
    rank = tl.load(ranks + pair, mask=held, other=0)
    start = tl.load(starts + expert, mask=held, other=0)
    tl.store(members + start * BLOCK_M + rank, pair + 1, mask=held)
    tl.store(block_experts + start + rank // BLOCK_M, expert + 1, mask=held & (rank % BLOCK_M == 0))


@triton.jit
def block_of(
    ids: tl.tensor,
    members: tl.tensor,
    block_experts: tl.tensor,
    first_expert: tl.tensor,
    experts: tl.tensor,
    pairs: tl.tensor,
    POWER: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """This program's expert (-1 for none) and its pairs [BLOCK_M] (-1 is padding).

    POWER: 0 if pairs are sorted. Otherwise a power of two that is at least the number of pairs, and each pair has a
    block: the block of an expert's first pair has all of its pairs, at most BLOCK_M, and the others' blocks are empty.
    """
    block = tl.program_id(1)
    row = tl.arange(0, BLOCK_M)
    if POWER == 0:
        expert = tl.load(block_experts + block) - 1
        pair = tl.load(members + block * BLOCK_M + row) - 1
    else:
        other = tl.arange(0, POWER)
        expert = tl.load(ids + block).to(tl.int32)
        same = (tl.load(ids + other, mask=other < pairs, other=-1).to(tl.int32) == expert) & (other < pairs)
        expert -= first_expert
        first = tl.min(tl.where(same, other, POWER), 0)
        expert = tl.where((first == block) & (expert < experts), expert, -1)
        rank = tl.cumsum(same.to(tl.int32), 0) - 1
        chosen = same[None, :] & (rank[None, :] == row[:, None])
        pair = tl.sum(tl.where(chosen, other[None, :] + 1, 0), 1) - 1
    return expert, pair


@triton.jit
def combined(
    results: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    shared: tl.tensor,
    token: tl.tensor,
    column: tl.tensor,
    tokens: tl.tensor,
    first_expert: tl.tensor,
    experts: tl.tensor,
    width: tl.tensor,
    shared_stride: tl.tensor,
    CHOICES: tl.constexpr,
    SHARED: tl.constexpr,
) -> tl.tensor:
    """Tokens' results [T, CHOICES, width], weighted and added up in fp32, and the shared expert's: [token, column]."""
    live, inside = token < tokens, (column < width)[None, :]
    total = tl.zeros([token.shape[0], column.shape[0]], tl.float32)
    for k in tl.static_range(CHOICES):
        pair = token.to(tl.int64) * CHOICES + k
        expert = tl.load(ids + pair, mask=live, other=-1) - first_expert
        # Results of experts on other ranks were never written here.
        held = live & (expert >= 0) & (expert < experts)
        factor = tl.load(weights + pair, mask=held, other=0.0)
        at = results + pair[:, None] * width + column[None, :]
        value = tl.load(at, mask=held[:, None] & inside, other=0.0, cache_modifier=".cg")
        total += value.to(tl.float32) * factor[:, None]
    if SHARED:
        at = shared + token.to(tl.int64)[:, None] * shared_stride + column[None, :]
        total += tl.load(at, mask=live[:, None] & inside, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["pairs", "tokens"])
def expert_kernel(
    x: tl.tensor,
    x_scale: tl.tensor,
    out: tl.tensor,
    x_stride: tl.tensor,
    N: tl.tensor,
    ids: tl.tensor,
    members: tl.tensor,
    block_experts: tl.tensor,
    first_expert: tl.tensor,
    experts: tl.tensor,
    pairs: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    zeros: tl.tensor,
    row_block: tl.tensor,
    col_block: tl.tensor,
    scale_columns: tl.tensor,
    weight_stride: tl.tensor,
    scale_stride: tl.tensor,
    zeros_stride: tl.tensor,
    weights: tl.tensor,
    shared: tl.tensor,
    total: tl.tensor,
    arrivals: tl.tensor,
    tokens: tl.tensor,
    shared_stride: tl.tensor,
    CHOICES: tl.constexpr,
    SHARED: tl.constexpr,
    GATED: tl.constexpr,
    POWER: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    HEIGHT: tl.constexpr,
    TOP_K: tl.constexpr,
    K: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """BLOCK_N outputs of a block's pairs; with GATED, silu(gate) * up of BLOCK_N / 2 inner channels.

    x: [pairs / TOP_K, K]. out: [pairs, N], of GATED [pairs, N / 2], the matrix's gates lying above its ups.
    With CHOICES, the choices a token has, the last of a tile's programs goes on to `combined`, into total [T, N].
    """
    after_previous()
    expert, pair = block_of(ids, members, block_experts, first_expert, experts, pairs, POWER, BLOCK_M)
    HALVES: tl.constexpr = 2 if GATED else 1
    WIDTH: tl.constexpr = BLOCK_N // HALVES
    width = N // HALVES
    start = tl.program_id(0) * WIDTH
    if expert >= 0:
        column = tl.arange(0, BLOCK_N)
        word = tl.arange(0, BLOCK_N // 8)
        # Gate and up of a channel are adjacent, in one thread's registers, unless whole words of 8 rows are read.
        n = tl.minimum(start + column // HALVES, width - 1) + column % HALVES * width
        words = tl.minimum(start // 8 + word % (WIDTH // 8), width // 8 - 1) + word // (WIDTH // 8) * (width // 8)
        ALIKE: tl.constexpr = HEIGHT > 0 and HEIGHT % WIDTH == 0
        even_block = start // HEIGHT if ALIKE else 0
        odd_block = (start + (HALVES - 1) * width) // HEIGHT if ALIKE else 0
        far = expert.to(tl.int64)
        acc = product(
            x,
            x_scale,
            tl.maximum(pair, 0) // TOP_K,
            x_stride,
            weight + far * weight_stride,
            scale + far * scale_stride,
            zeros + far * zeros_stride,
            row_block,
            col_block,
            scale_columns,
            n,
            words,
            even_block,
            odd_block,
            0,
            K,
            N,
            K,
            FORMAT,
            GROUP,
            ALIKE,
            BLOCK_K,
            ROUND,
        )
        if GATED:
            if FORMAT == AWQ:
                gate, up = tl.split(tl.permute(tl.reshape(acc, [BLOCK_M, 2, WIDTH]), [0, 2, 1]))
            else:
                gate, up = tl.split(tl.reshape(acc, [BLOCK_M, WIDTH, 2]))
            value = gated(gate.to(out.dtype.element_ty), up.to(out.dtype.element_ty))
        else:
            value = acc
        channel = start + tl.arange(0, WIDTH)
        at = out + tl.maximum(pair, 0).to(tl.int64)[:, None] * width + channel[None, :]
        tl.store(at, value.to(out.dtype.element_ty), mask=(pair >= 0)[:, None] & (channel < width)[None, :])
    if CHOICES > 0:  # noqa: SIM102
        if is_last(arrivals + tl.program_id(0), tl.num_programs(1)):
            token, column = tl.arange(0, BLOCK_M), start + tl.arange(0, BLOCK_N)
            value = combined(
                out, ids, weights, shared, token, column, tokens, first_expert, experts, width, shared_stride,
                CHOICES, SHARED,
            )  # fmt: skip
            at = total + token.to(tl.int64)[:, None] * width + column[None, :]
            tl.store(at, value.to(total.dtype.element_ty), mask=(token < tokens)[:, None] & (column < width)[None, :])


@triton.jit
def combine_kernel(
    results: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    total: tl.tensor,
    first_expert: tl.tensor,
    experts: tl.tensor,
    width: tl.tensor,
    shared: tl.tensor,
    shared_stride: tl.tensor,
    SHARED: tl.constexpr,
    CHOICES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One token's `combined`, a block of columns."""
    token = tl.program_id(0) + tl.arange(0, 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = combined(
        results, ids, weights, shared, token, column, tl.num_programs(0), first_expert, experts, width, shared_stride,
        CHOICES, SHARED,
    )  # fmt: skip
    at = total + token.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(at, value.to(total.dtype.element_ty), mask=(column < width)[None, :])
