"""Multi-head latent attention (DeepSeek-V2) in absorbed form over a paged latent pool."""

import torch
from torch import Tensor

from kernels.ragged import Pages, Rows, SinglePages

# Scores held at once for a long row, in elements: queries are taken in blocks to stay below.
_SCORES = 1 << 24


def write_latent(pool: Tensor, latent: Tensor, rope_key: Tensor, pages: Pages) -> None:
    """Store each token's latent [T, rank] and roped key [T, rope] at its place in pool [pages, page_size, width]."""
    pool.view(-1, pool.shape[-1]).index_copy_(0, pages.write_at, torch.cat((latent, rope_key), -1))


def mla_attention(q: Tensor, pool: Tensor, rank: int, scale: float, rows: Rows, pages: Pages) -> Tensor:
    """Causal softmax attention of absorbed queries over the latents of their own row.

    q: [T, H, width], the query projected into the latent, then its roped part. pool: [pages, page_size, width],
    already holding this step's tokens; its first `rank` channels are the values. Places a row has not written
    are never read into the result, whatever they hold. Returns [T, H, rank] in q's dtype; arithmetic is fp32.
    """
    scaled = q.float() * scale
    if not pages.alone and pages.together is not None:
        return _singles(scaled, pool, rank, pages.together).to(q.dtype)
    out = torch.empty((*q.shape[:2], rank), dtype=q.dtype, device=q.device)
    if rows.single_tokens is not None and pages.together is not None:
        at = rows.single_tokens
        out[at] = _singles(scaled[at], pool, rank, pages.together).to(q.dtype)
    for i, ids in pages.alone:
        first, count, start = rows.offsets[i], rows.counts[i], rows.starts[i]
        keys = pool.index_select(0, ids).flatten(0, 1)[: start + count].float()
        _row(scaled[first : first + count], keys, rank, start, out[first : first + count])
    return out


def _singles(q: Tensor, pool: Tensor, rank: int, pages: SinglePages) -> Tensor:
    """One query a row, q [S, H, width]: all rows' pages side by side, so nothing is padded beyond a page."""
    keys = pool.index_select(0, pages.ids).float()
    # A score of -inf alone does not hide an unused place: its weight 0 times NaN is NaN.
    tails = keys.index_select(0, pages.last)
    tails.masked_fill_(pages.unused.index_select(0, pages.last)[..., None], 0.0)
    keys.index_copy_(0, pages.last, tails)

    scores = torch.bmm(q.index_select(0, pages.rows), keys.transpose(1, 2))
    scores.masked_fill_(pages.unused[:, None], float("-inf"))
    best = torch.full(q.shape[:2], float("-inf"), device=q.device)
    best.scatter_reduce_(0, pages.rows[:, None].expand(-1, q.shape[1]), scores.amax(-1), "amax")
    weights = scores.sub_(best.index_select(0, pages.rows)[..., None]).exp_()
    total = torch.zeros_like(best).index_add_(0, pages.rows, weights.sum(-1))
    out = torch.zeros((*q.shape[:2], rank), device=q.device)
    out.index_add_(0, pages.rows, torch.bmm(weights, keys[..., :rank]))
    return out.div_(total[..., None])


def _row(q: Tensor, keys: Tensor, rank: int, start: int, out: Tensor) -> None:
    """Queries [n, H, width] at positions start … against keys [start + n, width], into out [n, H, rank]."""
    count, heads = q.shape[:2]
    block = max(1, _SCORES // (heads * keys.shape[0]))
    for a in range(0, count, block):
        b = min(a + block, count)
        seen = keys[: start + b]
        scores = torch.matmul(q[a:b].transpose(0, 1), seen.t())
        if count > 1:
            query_at = torch.arange(start + a, start + b, device=q.device)[:, None]
            scores.masked_fill_(torch.arange(start + b, device=q.device) > query_at, float("-inf"))
        out[a:b] = torch.matmul(scores.softmax(-1), seen[:, :rank]).transpose(0, 1)
