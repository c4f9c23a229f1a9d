"""What a latent-attention layer keeps of a token: its normed latent and its roped key, put into the paged pool."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.norm import normed_row, rms_norm_reference, row_warps
from kernels.rope import rope_interleaved_reference, turned_pairs
from kernels.tuning import Config, config


def norm_rope_write_latent_reference(
    pool: Tensor, kv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, write_at: Tensor, eps: float
) -> None:
    """Store each token's latent after RMSNorm, then its key after interleaved rope, at its place in the pool.

    pool: [pages, page_size, rank + 2R], written in place. kv: [T, rank + 2R] as projected. weight: [rank].
    cos, sin: [T, R] fp32. write_at: [T] int64, page * page_size + offset, all different.
    """
    latent, rope_key = kv.split_with_sizes((weight.shape[0], 2 * cos.shape[1]), -1)
    rope_key = rope_interleaved_reference(rope_key[:, None], cos, sin)[:, 0]
    kept = torch.cat((rms_norm_reference(latent, weight, eps), rope_key), -1)
    pool.view(-1, pool.shape[-1]).index_copy_(0, write_at, kept)


@triton.jit
def _norm_rope_write_latent_kernel(
    pool: tl.tensor,
    kv: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    write_at: tl.tensor,
    rank: tl.tensor,
    half: tl.tensor,
    eps: tl.tensor,
    RANK_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    width = rank + 2 * half
    to = pool + tl.load(write_at + token) * width
    row = kv + token * width
    channel = tl.arange(0, RANK_BLOCK)
    inside = channel < rank
    latent = tl.load(row + channel, inside, 0.0)
    tl.store(to + channel, normed_row(latent, tl.load(weight + channel, inside, 0.0), rank, eps), inside)

    pair = tl.arange(0, HALF_BLOCK)
    inside = pair < half
    c, s = tl.load(cos + token * half + pair, inside, 1.0), tl.load(sin + token * half + pair, inside, 0.0)
    first, second = turned_pairs(row + rank, pair, c, s, inside)
    tl.store(to + rank + 2 * pair, first.to(pool.dtype.element_ty), inside)
    tl.store(to + rank + 2 * pair + 1, second.to(pool.dtype.element_ty), inside)


def norm_rope_write_latent_triton(
    pool: Tensor,
    kv: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    write_at: Tensor,
    eps: float,
    tuned: Config | None = None,
) -> None:
    """One program a token."""
    tokens, (rank, half) = kv.shape[0], (weight.shape[0], cos.shape[1])
    if tokens:
        launch = tuned or config("norm_rope_write_latent", (tokens, rank), {"num_warps": row_warps(rank)})
        blocks = {"RANK_BLOCK": triton.next_power_of_2(rank), "HALF_BLOCK": triton.next_power_of_2(half)}
        _norm_rope_write_latent_kernel[(tokens,)](
            pool, kv, weight, cos, sin, write_at, rank, half, eps, **blocks, **launch
        )


norm_rope_write_latent = dispatch(norm_rope_write_latent_reference, norm_rope_write_latent_triton)
