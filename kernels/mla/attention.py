"""Multi-head latent attention (DeepSeek-V2) in absorbed form over a paged latent pool."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import Device, device_of
from kernels.dispatch import dispatch
from kernels.pdl import LAUNCH, after_previous
from kernels.tuning import Config, config
from kernels.varlen import Pages, Rows, SinglePages

# The most scores of a long row in memory at once, in elements: queries are taken in blocks to stay below.
_SCORES = 1 << 24
# The reference computes rows of up to this number of tokens together.
_FEW = 8


def mla_attention_reference(q: Tensor, pool: Tensor, rank: int, scale: float, rows: Rows, pages: Pages) -> Tensor:
    """Causal softmax attention of absorbed queries over the latents of their own row.

    q: [T, H, width], the query projected into the latent, then its roped part. pool: [pages, page_size, width],
    already holding this step's tokens; its first `rank` channels are the values. Places a row has not written
    are never read into the result, whatever they hold. Returns [T, H, rank] in q's dtype; arithmetic is fp32.

    A decode step reads each row's latents once: in bf16 at rank 512 + 64, 1,152 bytes a token of context and layer.
    At 4.3 TB/s that is 0.27 us a layer per 1,000 tokens of context, 8.8 us at 32k and 35 us at 128k for one row.
    """
    scaled = q.float() * scale
    # Several rows of a few tokens, such as verified drafts, are cheaper as many rows of one token.
    if rows.longer and len(rows.counts) > 1 and rows.longest <= _FEW:
        rows, pages = pages.apart
    if not pages.alone and pages.together is not None:
        return _singles(scaled, pool, rank, pages.together).to(q.dtype)
    out = torch.empty((*q.shape[:2], rank), dtype=q.dtype, device=q.device)
    at = rows.singles.tokens
    if at is not None and pages.together is not None:
        out[at] = _singles(scaled[at], pool, rank, pages.together).to(q.dtype)
    for i, ids in pages.alone:
        first, count, start = rows.offsets[i], rows.counts[i], rows.starts[i]
        keys = pool.index_select(0, ids).flatten(0, 1)[: start + count].float()
        _row(scaled[first : first + count], keys, rank, start, out[first : first + count])
    return out


def _singles(q: Tensor, pool: Tensor, rank: int, pages: SinglePages) -> Tensor:
    """Compute rows of one query, q [S, H, width].

    All rows' pages are side by side, so that nothing is padded beyond a page.
    """
    keys = pool.index_select(0, pages.ids).float()
    # A score of -inf does not suffice to hide an unused place, because its weight 0 times NaN is NaN.
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
    """Compute queries [n, H, width] at positions start … against keys [start + n, width], into out [n, H, rank]."""
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


@triton.jit
def _page_of(pages: tl.tensor, tile: tl.tensor, end: tl.tensor, PAGE: tl.constexpr, KEYS: tl.constexpr) -> tl.tensor:
    """The page or pages of a tile of KEYS places: one id if a page holds all of them, else one id per place."""
    if PAGE % KEYS == 0:
        page = tl.load(pages + tile * KEYS // PAGE)
    else:
        place = tile * KEYS + tl.arange(0, KEYS)
        page = tl.load(pages + place // PAGE, mask=place < end, other=0)
    return page


# Sizes that change from step to step must not cause a new compilation.
@triton.jit(do_not_specialize=["tokens"])
def _attention_kernel(  # noqa: PLR0915
    q: tl.tensor,
    pool: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    block_rows: tl.tensor,
    block_firsts: tl.tensor,
    offsets: tl.tensor,
    starts: tl.tensor,
    slots: tl.tensor,
    scale: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    table_stride: tl.tensor,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
) -> None:
    """Program (block, split, heads): HEADS heads of TOKENS tokens of a row over its share of the row's tiles.

    scale: times log2(e), for all exponents are of 2. Without SPLIT out [T, H, RANK] is the result; with it
    out [splits, T, H, RANK] fp32 holds each split's own average and sums [splits, T, H] the log2 of its weight.
    """
    after_previous()
    # Rows' last blocks have the most work, so they begin first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    split = tl.program_id(1)
    row = tl.load(block_rows + block)
    first = tl.load(block_firsts + block)
    base = tl.load(offsets + row)
    count = tl.load(offsets + row + 1) - base
    start = tl.load(starts + row).to(tl.int32)

    lane = tl.arange(0, TOKENS * HEADS)
    token = first + lane // HEADS
    head = tl.program_id(2) * HEADS + lane % HEADS
    live = (token < count) & (head < heads)
    query_at = start + token
    # The index of a lane's result in [T, H].
    at = (base + token) * heads + head
    end = start + tl.minimum(first + TOKENS, count)

    tiles = tl.cdiv(end, KEYS)
    share = tl.cdiv(tiles, tl.num_programs(1))
    low = split * share
    high = tl.minimum(low + share, tiles)
    if SPLIT:
        at += split * tokens * heads
        if low >= high:
            tl.store(sums + at, float("-inf"), mask=live)
            return

    r = tl.arange(0, BLOCK_RANK)
    p = tl.arange(0, BLOCK_ROPE)
    # Told this, the compiler drops a mask that is true everywhere.
    in_rank = ((r < RANK) | (RANK == BLOCK_RANK))[None, :]
    in_rope = ((p < ROPE) | (ROPE == BLOCK_ROPE))[None, :]
    q_at = q + (base + token).to(tl.int64)[:, None] * q_token + head[:, None] * q_head
    q_latent = tl.load(q_at + r[None, :], mask=live[:, None] & in_rank, other=0.0)
    q_rope = tl.load(q_at + RANK + p[None, :], mask=live[:, None] & in_rope, other=0.0)

    best = tl.full([TOKENS * HEADS], float("-inf"), tl.float32)
    total = tl.zeros([TOKENS * HEADS], tl.float32)
    acc = tl.zeros([TOKENS * HEADS, BLOCK_RANK], tl.float32)
    pages = table + tl.load(slots + row) * table_stride
    page = _page_of(pages, low, end, PAGE, KEYS)
    for tile in range(low, high):
        key = tl.arange(0, KEYS)
        key_at = tile * KEYS + key
        if PAGE % KEYS == 0:
            place = page.to(tl.int64) * PAGE + tile * KEYS % PAGE + key
        else:
            place = page.to(tl.int64) * PAGE + key_at % PAGE
        key_from = pool + place[:, None] * (RANK + ROPE)
        written = (key_at < end)[:, None]
        latent = tl.load(key_from + r[None, :], mask=written & in_rank, other=0.0)
        rope = tl.load(key_from + RANK + p[None, :], mask=written & in_rope, other=0.0)
        # The page's id is loaded one tile ahead, so that the page's loads never wait for it.
        page = _page_of(pages, tl.minimum(tile + 1, high - 1), end, PAGE, KEYS)

        scores = tl.dot(q_latent, tl.trans(latent), input_precision="tf32x3")
        scores = tl.dot(q_rope, tl.trans(rope), scores, input_precision="tf32x3")
        scores = tl.where(key_at[None, :] <= query_at[:, None], scores * scale, float("-inf"))
        now = tl.maximum(best, tl.max(scores, 1))
        # A query before all of this split's keys has no score yet, and -inf minus -inf would be NaN.
        shift = tl.where(now == float("-inf"), 0.0, now)
        fade = tl.exp2(best - shift)
        weights = tl.exp2(scores - shift[:, None])
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(latent.dtype), latent, acc * fade[:, None], input_precision="tf32x3")
        best = now

    seen = total > 0
    total = tl.where(seen, total, 1.0)
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + at.to(tl.int64)[:, None] * RANK + r[None, :], result, mask=live[:, None] & in_rank)
    if SPLIT:
        tl.store(sums + at, tl.where(seen, best + tl.log2(total), float("-inf")), mask=live)


@triton.jit(do_not_specialize=["results", "splits"])
def _merge_kernel(
    parts: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    results: tl.tensor,
    splits: tl.tensor,
    RANK: tl.constexpr,
    ALL: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Program (token and head, channels): the splits' averages by their weights. results: T * H; ALL >= splits."""
    after_previous()
    at = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    everyone = tl.arange(0, ALL)
    best = tl.max(tl.load(sums + everyone.to(tl.int64) * results + at, mask=everyone < splits, other=float("-inf")), 0)
    acc = tl.zeros([CHANNELS], tl.float32)
    total = 0.0
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        where = split.to(tl.int64) * results + at
        weight = tl.exp2(tl.load(sums + where, mask=split < splits, other=float("-inf")) - best)
        # The result of an empty split was never written.
        mask = (weight > 0)[:, None] & (channel < RANK)[None, :]
        part = tl.load(parts + where[:, None] * RANK + channel[None, :], mask=mask, other=0.0)
        acc += tl.sum(part * weight[:, None], 0)
        total += tl.sum(weight, 0)
    tl.store(out + at * RANK + channel, (acc / total).to(out.dtype.element_ty), mask=channel < RANK)


# Most lanes of a program: the accumulators of 64 would not fit into its registers.
_LANES = 32
# Tiles of keys and their stages, best first: as many bytes in flight as shared memory holds.
_TILES = ((64, 3), (32, 4), (64, 2), (32, 3), (32, 2), (16, 3), (16, 2))
_FP32_TILES = ((16, 2),)


def _default(device: Device, lanes: int, width: int, itemsize: int) -> Config:
    """lanes: queries of a program, each `width` channels. programs: how many fill the GPU.

    ValueError where not even the smallest tiles fit.
    """
    queries = lanes * width * itemsize
    for keys, stages in _TILES if itemsize == 2 else _FP32_TILES:
        tile = keys * width * itemsize
        # Products of fp32 take a tile in pieces, which lie beside it.
        if device.fits(lanes, stages, tile, queries + lanes * keys * itemsize + (tile if itemsize == 4 else 0)):
            return {"KEYS": keys, "programs": device.multiprocessors, "num_warps": 8, "num_stages": stages}
    raise ValueError(
        f"{device.name} gives a block {device.shared} bytes of shared memory, too few for latent attention over "
        f"{width} channels of {itemsize} bytes" + (": serve in bfloat16 (dtype) on it" if itemsize == 4 else "")
    )


def mla_attention_triton(
    q: Tensor, pool: Tensor, rank: int, scale: float, rows: Rows, pages: Pages, tuned: Config | None = None
) -> Tensor:
    """All heads of a block of a row's tokens in one program, as they read the same latents.

    Where that makes fewer programs than half of the configuration's `programs`, each row's latents are split among
    several, but never into more programs than that: one beyond a full wave would have the whole GPU wait for it. A
    second kernel merges their results. ValueError if pool is not contiguous.
    """
    tokens, heads, width = q.shape
    if not pool.is_contiguous() or q.stride(2) != 1:
        raise ValueError("the latent pool must be contiguous, and a query's channels adjacent")
    out = torch.empty((tokens, heads, rank), dtype=q.dtype, device=q.device)
    # fp32 takes twice the memory, and its products several times the registers.
    narrow = q.element_size() == 2
    most_lanes = _LANES if narrow else 16
    lanes = min(most_lanes, triton.next_power_of_2(heads))
    each = min(most_lanes // lanes, triton.next_power_of_2(rows.longest))
    # The matrix units take no fewer than 16 lanes.
    lanes = max(lanes, 16 // each)
    default = _default(device_of(q), each * lanes, width, q.element_size())
    chosen = dict(tuned or config("mla_attention", (len(rows.counts), rows.longest, heads), default))
    keys = chosen.pop("KEYS")

    blocks, head_blocks = rows.blocks(each), triton.cdiv(heads, lanes)
    most_tiles = triton.cdiv(pages.table.shape[1] * pages.page_size, keys)
    programs = chosen.pop("programs")
    splits = max(1, min(most_tiles, programs // (blocks.count * head_blocks)))
    parts, sums = out, out
    if splits > 1:
        parts = torch.empty((splits, tokens, heads, rank), dtype=torch.float32, device=q.device)
        sums = torch.empty((splits, tokens, heads), dtype=torch.float32, device=q.device)
    _attention_kernel[(blocks.count, splits, head_blocks)](
        q,
        pool,
        pages.table,
        parts,
        sums,
        blocks.rows,
        blocks.firsts,
        rows.token_offsets,
        rows.row_starts,
        rows.slots,
        scale * math.log2(math.e),
        tokens,
        heads,
        q.stride(0),
        q.stride(1),
        pages.table.stride(0),
        RANK=rank,
        ROPE=width - rank,
        PAGE=pages.page_size,
        SPLIT=splits > 1,
        TOKENS=each,
        HEADS=lanes,
        KEYS=keys,
        BLOCK_RANK=max(triton.next_power_of_2(rank), 16),
        BLOCK_ROPE=max(triton.next_power_of_2(width - rank), 16),
        **chosen,
        **LAUNCH,
    )
    if splits > 1:
        channels = min(128, triton.next_power_of_2(rank))
        _merge_kernel[(tokens * heads, triton.cdiv(rank, channels))](
            parts,
            sums,
            out,
            tokens * heads,
            splits,
            RANK=rank,
            ALL=triton.next_power_of_2(programs),
            SPLITS=16,
            CHANNELS=channels,
            **LAUNCH,
        )
    return out


mla_attention = dispatch(mla_attention_reference, mla_attention_triton)
