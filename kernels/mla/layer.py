"""A latent-attention layer without its projections."""

import torch
from torch import Tensor

from kernels.mla.attention import mla_attention
from kernels.mla.forms import Forms, ShortRows
from kernels.mla.prefill import mla_prefill
from kernels.rope import rope_interleaved


def latent_attention(
    queries: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, kv_b: Tensor, scale: float, forms: Forms
) -> Tensor:
    """Rope on the queries, then causal attention over the latents of their own row: [T, H, v] in queries' dtype.

    queries: [T, H, nope + rope], overwritten. cos, sin: [T, rope / 2] fp32. pool: [pages, page_size, rank + rope],
    already holding this step's tokens. kv_b: [H, nope + v, rank]. Long rows are computed in expanded form, short ones
    absorbed (`kernels.mla.forms`); both are the same sums in another order.
    """
    if len(forms.short) == 1 and forms.short[0].tokens is None:
        return _absorbed(queries, cos, sin, pool, kv_b, scale, forms.short[0])
    rope = 2 * cos.shape[1]
    nope = queries.shape[2] - rope
    out = torch.empty(*queries.shape[:2], kv_b.shape[1] - nope, dtype=queries.dtype, device=queries.device)
    for short in forms.short:
        at = short.tokens
        assert at is not None, "rows need a list of their tokens unless they are all rows of the step"
        out[at] = _absorbed(queries[at], cos[at], sin[at], pool, kv_b, scale, short)
    if forms.long:
        rope_interleaved(queries[..., nope:], cos, sin, queries[..., nope:])
    for row in forms.long:
        mla_prefill(queries, pool, kv_b, out, scale, row)
    return out


def _absorbed(
    queries: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, kv_b: Tensor, scale: float, short: ShortRows
) -> Tensor:
    """Attend in absorbed form: project queries into the latent, and the results to values."""
    rank, rope = kv_b.shape[2], 2 * cos.shape[1]
    nope = queries.shape[2] - rope
    q = torch.empty(*queries.shape[:2], rank + rope, dtype=queries.dtype, device=queries.device)
    torch.bmm(queries[..., :nope].transpose(0, 1), kv_b[:, :nope], out=q[..., :rank].transpose(0, 1))
    rope_interleaved(queries[..., nope:], cos, sin, q[..., rank:])
    found = mla_attention(q, pool, rank, scale, short.rows, short.pages)
    return torch.bmm(found.transpose(0, 1), kv_b[:, nope:].transpose(1, 2)).transpose(0, 1)
