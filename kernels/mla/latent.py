"""Writes what a latent-attention layer keeps of a token, its normed latent and its roped key, into the paged pool."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.norm import normed_row, rms_norm_reference, row_warps
from kernels.pdl import LAUNCH, after_previous
from kernels.rope import rope_interleaved_reference, turned_pairs
from kernels.tuning import Config, config


def norm_rope_write_latent_reference(
    pool: Tensor,
    projected: Tensor,
    query_weight: Tensor | None,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    write_at: Tensor,
    eps: float,
) -> Tensor:
    """Store each token's latent after RMSNorm, then its key after interleaved rope, at its place in the pool.

    pool: [pages, page_size, rank + 2R], written in place. projected: [T, Q + rank + 2R], queries, then latent and key.
    query_weight: [Q], or None for queries that aren't normed. weight: [rank]. cos, sin: [T, R] fp32. write_at: [T]
    int64, page * page_size + offset, all different. Returns the queries [T, Q], after an RMSNorm of their own.
    """
    rank, width = weight.shape[0], pool.shape[-1]
    queries, latent, rope_key = projected.split_with_sizes((projected.shape[1] - width, rank, width - rank), -1)
    rope_key = rope_interleaved_reference(rope_key[:, None], cos, sin)[:, 0]
    kept = torch.cat((rms_norm_reference(latent, weight, eps), rope_key), -1)
    pool.view(-1, width).index_copy_(0, write_at, kept)
    return queries if query_weight is None else rms_norm_reference(queries, query_weight, eps)


@triton.jit
def _norm_rope_write_latent_kernel(
    pool: tl.tensor,
    projected: tl.tensor,
    query_weight: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    write_at: tl.tensor,
    queries: tl.tensor,
    query: tl.tensor,
    rank: tl.tensor,
    half: tl.tensor,
    projected_stride: tl.tensor,
    eps: tl.tensor,
    QUERY_BLOCK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
) -> None:
    """Program (token, 0) for its latent and key, (token, 1) for its `query` channels of queries."""
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    row = projected + token * projected_stride
    if tl.program_id(1) == 0:
        to = pool + tl.load(write_at + token) * (rank + 2 * half)
        row += query
        channel = tl.arange(0, RANK_BLOCK)
        inside = channel < rank
        latent = tl.load(row + channel, inside, 0.0)
        tl.store(to + channel, normed_row(latent, tl.load(weight + channel, inside, 0.0), rank, eps), inside)

        pair = tl.arange(0, HALF_BLOCK)
        real = pair < half
        c, s = tl.load(cos + token * half + pair, real, 1.0), tl.load(sin + token * half + pair, real, 0.0)
        first, second = turned_pairs(row + rank, pair, c, s, real)
        tl.store(to + rank + 2 * pair, first.to(pool.dtype.element_ty), real)
        tl.store(to + rank + 2 * pair + 1, second.to(pool.dtype.element_ty), real)
    else:
        place = tl.arange(0, QUERY_BLOCK)
        within = place < query
        x, scale = tl.load(row + place, within, 0.0), tl.load(query_weight + place, within, 0.0)
        tl.store(queries + token * query + place, normed_row(x, scale, query, eps), within)


def norm_rope_write_latent_triton(
    pool: Tensor,
    projected: Tensor,
    query_weight: Tensor | None,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    write_at: Tensor,
    eps: float,
    tuned: Config | None = None,
) -> Tensor:
    """Two programs per token, or one if queries aren't normed; rows of `projected` need not be adjacent."""
    tokens, (rank, half) = projected.shape[0], (weight.shape[0], cos.shape[1])
    query = projected.shape[1] - pool.shape[-1]
    queries = projected[:, :query]
    if query_weight is not None:
        queries = torch.empty(tokens, query, dtype=projected.dtype, device=projected.device)
    if tokens:
        widest = rank if query_weight is None else max(rank, query)
        launch = tuned or config("norm_rope_write_latent", (tokens, widest), {"num_warps": row_warps(widest)})
        blocks = {"QUERY_BLOCK": query, "RANK_BLOCK": rank, "HALF_BLOCK": half}
        _norm_rope_write_latent_kernel[(tokens, 1 if query_weight is None else 2)](
            pool,
            projected,
            weight if query_weight is None else query_weight,
            weight,
            cos,
            sin,
            write_at,
            queries,
            query,
            rank,
            half,
            projected.stride(0),
            eps,
            **{name: triton.next_power_of_2(size) for name, size in blocks.items()},
            **launch,
            **LAUNCH,
        )
    return queries


norm_rope_write_latent = dispatch(norm_rope_write_latent_reference, norm_rope_write_latent_triton)
