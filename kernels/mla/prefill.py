"""Latent attention of one long row in expanded form: every latent becomes a key and a value of each head first.

The expansion takes one run of the row's keys at a time, so that its memory does not grow with the row's length; queries
carry their softmax from one run to the next.
"""

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import Device, device_of
from kernels.dispatch import dispatch
from kernels.mla.forms import LongRow
from kernels.tuning import Config, config

# Elements of expanded keys and values that exist at once: 128 MiB in 16 bits.
_EXPANDED = 1 << 26
# Elements of a mask that exist at once.
_MASK = 1 << 24


def mla_prefill_reference(q: Tensor, pool: Tensor, kv_b: Tensor, out: Tensor, scale: float, row: LongRow) -> None:
    """Causal softmax attention of a row's queries over its latents, into the row's tokens of out.

    q: [T, H, nope + rope], the rope part turned. pool: [pages, page_size, rank + rope], already holding this step's
    tokens. kv_b: [H, nope + v, rank]: what makes a head's key without rope, then its value, of a latent. out: [T, H,
    v] in q's dtype; only the row's tokens are written. Arithmetic is fp32.

    A row of 8,192 tokens and 32 heads of 128 + 64 and 128 channels takes 0.69 TFLOP a layer, and 0.07 to expand its
    keys.
    """
    heads, rank = kv_b.shape[0], kv_b.shape[2]
    v = out.shape[2]
    end = row.start + row.count
    latents = pool.index_select(0, row.pages).flatten(0, 1)[:end].float()
    queries = q[row.first : row.first + row.count].transpose(0, 1).float()
    to = out[row.first : row.first + row.count].transpose(0, 1)
    width = queries.shape[2]
    together = max(1, _EXPANDED // (end * 2 * width))
    for a in range(0, heads, together):
        part = kv_b[a : a + together].float()
        expanded = F.linear(latents[:, :rank], part.flatten(0, 1)).view(end, len(part), -1).transpose(0, 1)
        roped = latents[:, rank:].expand(len(part), -1, -1)
        keys = torch.cat((expanded[..., :-v], roped), -1)
        # torch has a fused kernel for keys and values of the same width alone.
        values = F.pad(expanded[..., -v:], (0, max(width - v, 0)))
        to[a : a + together] = _causal(queries[a : a + together], keys, values, scale, row.start)[..., :v]


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, start: int) -> Tensor:
    """q [H, n, d] at positions start … over k, v [H, start + n, d]: [H, n, d]."""
    q, k, v = q[None], k[None], v[None]
    if not start:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[0]
    count, end = q.shape[2], k.shape[2]
    block = max(1, _MASK // end)
    outs = []
    for a in range(0, count, block):
        b = min(a + block, count)
        seen = torch.ones(b - a, start + b, dtype=torch.bool, device=q.device).tril_(start + a)
        part = q[:, :, a:b], k[:, :, : start + b], v[:, :, : start + b]
        outs.append(F.scaled_dot_product_attention(*part, attn_mask=seen, scale=scale))
    return torch.cat(outs, 2)[0]


@triton.jit
def _advance(
    q_nope: tl.tensor,
    q_rope: tl.tensor,
    query_at: tl.tensor,
    best: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    expanded: tl.tensor,
    roped: tl.tensor,
    key_token: tl.tensor,
    rope_token: tl.tensor,
    first: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    V: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Softmax over keys low … high - 1 of a run whose first key stands at position `first` and which has `end` keys."""
    n = tl.arange(0, BLOCK_NOPE)
    p = tl.arange(0, BLOCK_ROPE)
    j = tl.arange(0, BLOCK_V)
    # Told this, the compiler drops a mask that is true everywhere.
    in_nope = ((n < NOPE) | (NOPE == BLOCK_NOPE))[None, :]
    in_rope = ((p < ROPE) | (ROPE == BLOCK_ROPE))[None, :]
    in_v = ((j < V) | (V == BLOCK_V))[None, :]
    for tile in range(low, high, KEYS):
        place = tile + tl.arange(0, KEYS)
        there = ((place < end) | (not MASKED))[:, None]
        key_from = expanded + place.to(tl.int64)[:, None] * key_token
        key = tl.load(key_from + n[None, :], mask=there & in_nope, other=0.0)
        rope = tl.load(roped + place.to(tl.int64)[:, None] * rope_token + p[None, :], mask=there & in_rope, other=0.0)
        value = tl.load(key_from + NOPE + j[None, :], mask=there & in_v, other=0.0)
        scores = tl.dot(q_nope, tl.trans(key), input_precision="tf32x3")
        scores = tl.dot(q_rope, tl.trans(rope), scores, input_precision="tf32x3") * scale
        if MASKED:
            scores = tl.where((first + place)[None, :] <= query_at[:, None], scores, float("-inf"))
        now = tl.maximum(best, tl.max(scores, 1))
        # A query before all keys of this run has no score yet, and -inf minus -inf would be NaN.
        shift = tl.where(now == float("-inf"), 0.0, now)
        fade = tl.exp2(best - shift)
        weights = tl.exp2(scores - shift[:, None])
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(value.dtype), value, acc * fade[:, None], input_precision="tf32x3")
        best = now
    return best, total, acc


# Lengths that change from step to step must not cause a new compilation.
@triton.jit(do_not_specialize=["count", "start", "first", "keys", "more"])
def _prefill_kernel(
    q: tl.tensor,
    expanded: tl.tensor,
    roped: tl.tensor,
    out: tl.tensor,
    averages: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    count: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    keys: tl.tensor,
    more: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    key_token: tl.tensor,
    key_head: tl.tensor,
    rope_token: tl.tensor,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    V: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Program (block, head): QUERIES queries of a row over one run of its keys.

    The run's keys stand at positions first … first + keys - 1. A run that is not the row's first goes on from averages
    [count, H, V] and sums [count, H], the log2 of their weights; with `more`, runs follow that need them.
    scale: times log2(e), for all exponents are of 2.
    """
    # The last blocks have the most work, so they begin first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head, heads = tl.program_id(1), tl.num_programs(1)
    token = block * QUERIES + tl.arange(0, QUERIES)
    live = token < count
    query_at = start + token
    n = tl.arange(0, BLOCK_NOPE)
    p = tl.arange(0, BLOCK_ROPE)
    j = tl.arange(0, BLOCK_V)
    q_at = q + token.to(tl.int64)[:, None] * q_token + head * q_head
    q_nope = tl.load(q_at + n[None, :], mask=live[:, None] & (n < NOPE)[None, :], other=0.0)
    q_rope = tl.load(q_at + NOPE + p[None, :], mask=live[:, None] & (p < ROPE)[None, :], other=0.0)

    kept = token < tl.where(first > 0, count, 0)
    at = token * heads + head
    place = at.to(tl.int64)[:, None] * V + j[None, :]
    in_v = (j < V)[None, :]
    best = tl.load(sums + at, mask=kept, other=float("-inf"))
    total = tl.where(best > float("-inf"), 1.0, 0.0)
    acc = tl.load(averages + place, mask=kept[:, None] & in_v, other=0.0)

    # Keys that every query of the block sees need no mask; no query sees keys from `high` on.
    whole = tl.minimum(tl.maximum(start + block * QUERIES + 1 - first, 0), keys) // KEYS * KEYS
    high = tl.minimum(tl.maximum(start + tl.minimum(block * QUERIES + QUERIES, count) - first, 0), keys)
    expanded += head * key_head
    best, total, acc = _advance(
        q_nope, q_rope, query_at, best, total, acc, expanded, roped, key_token, rope_token, first, 0, whole, keys,
        scale, NOPE, ROPE, V, KEYS, BLOCK_NOPE, BLOCK_ROPE, BLOCK_V, False,
    )  # fmt: skip
    best, total, acc = _advance(
        q_nope, q_rope, query_at, best, total, acc, expanded, roped, key_token, rope_token, first, whole, high, keys,
        scale, NOPE, ROPE, V, KEYS, BLOCK_NOPE, BLOCK_ROPE, BLOCK_V, True,
    )  # fmt: skip
    seen = total > 0
    average = acc / tl.where(seen, total, 1.0)[:, None]
    tl.store(out + place, average.to(out.dtype.element_ty), mask=live[:, None] & in_v)
    keep = token < tl.where(more > 0, count, 0)
    tl.store(averages + place, average, mask=keep[:, None] & in_v)
    tl.store(sums + at, tl.where(seen, best + tl.log2(total), float("-inf")), mask=keep)


# Queries of a program, tiles of keys and how many stages of them, the best first.
_TILES = ((128, 64, 3), (128, 64, 2), (64, 64, 3), (64, 64, 2), (64, 32, 3), (64, 32, 2), (32, 16, 1))


def _default(device: Device, query: int, key: int, itemsize: int) -> Config:
    """query: channels of a query; key: of a key and its value together."""
    for queries, keys, stages in _TILES if itemsize == 2 else _TILES[-1:]:
        if device.fits(queries, stages, keys * key * itemsize, queries * (query + keys) * itemsize):
            break
    return {"QUERIES": queries, "KEYS": keys, "num_warps": 8 if itemsize == 2 else 4, "num_stages": stages}


def mla_prefill_triton(
    q: Tensor, pool: Tensor, kv_b: Tensor, out: Tensor, scale: float, row: LongRow, tuned: Config | None = None
) -> None:
    """Runs of keys are gathered, expanded by the vendor's product and attended to, one after another."""
    heads, both, rank = kv_b.shape
    size, v = pool.shape[1], out.shape[2]
    nope, rope = both - v, q.shape[2] - both + v
    end = row.start + row.count
    run = min(max(_EXPANDED // (heads * both) // size, 1), row.pages.shape[0])
    default = _default(device_of(q), q.shape[2], q.shape[2] + v, q.element_size())
    chosen = dict(tuned or config("mla_prefill", (row.count, end, heads), default))
    several = run < row.pages.shape[0]
    # The softmax state that one run passes to the next.
    handed = row.count if several else 0
    averages = torch.empty(handed, heads, v, dtype=torch.float32, device=q.device)
    sums = torch.empty(handed, heads, dtype=torch.float32, device=q.device)
    queries, to = q[row.first :], out[row.first :]
    matrix = kv_b.flatten(0, 1)
    grid = (triton.cdiv(row.count, chosen["QUERIES"]), heads)
    for page in range(0, row.pages.shape[0], run):
        first = page * size
        latents = pool.index_select(0, row.pages[page : page + run]).flatten(0, 1)[: end - first]
        expanded = F.linear(latents[:, :rank], matrix)
        _prefill_kernel[grid](
            queries,
            expanded,
            latents[:, rank:],
            to,
            averages,
            sums,
            scale * math.log2(math.e),
            row.count,
            row.start,
            first,
            len(latents),
            int(first + len(latents) < end),
            queries.stride(0),
            queries.stride(1),
            expanded.stride(0),
            both,
            latents.stride(0),
            NOPE=nope,
            ROPE=rope,
            V=v,
            BLOCK_NOPE=max(triton.next_power_of_2(nope), 16),
            BLOCK_ROPE=max(triton.next_power_of_2(rope), 16),
            BLOCK_V=max(triton.next_power_of_2(v), 16),
            **chosen,
        )


mla_prefill = dispatch(mla_prefill_reference, mla_prefill_triton)
