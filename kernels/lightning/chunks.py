"""Lightning attention over long rows: segments of a row in parallel, chunks of a segment as matrix products.

A row's state passes through its segments in three launches: each segment's own sum of e^(g distance) k^T v, a scan of
these along the row, then every segment's outputs from the state it begins with. One program a row and head walking
all chunks in turn would do with one launch, but at 8 heads a rank it leaves most of a GPU idle for hundreds of
chunks; a state a chunk instead of a segment would move 64 KB a head for every 64 tokens, more than the tokens do.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import Device, device_of
from kernels.lightning.step import check_layout
from kernels.tuning import Config, config
from kernels.varlen import Rows


@triton.jit
def _added(
    k: tl.tensor,
    v: tl.tensor,
    state: tl.tensor,
    g: tl.tensor,
    left: tl.tensor,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """The state [d, v] after a chunk of `left` tokens; k [CHUNK, d] and v [CHUNK, v] are zero after them."""
    to_end = tl.exp(g * tl.maximum(left - 1 - tl.arange(0, CHUNK), 0).to(tl.float32))
    return tl.dot(tl.trans(k), v * to_end[:, None], state * tl.exp(g * left.to(tl.float32)), input_precision="tf32")


@triton.jit
def _advance_kernel(
    k: tl.tensor,
    v: tl.tensor,
    state: tl.tensor,
    carried: tl.tensor,
    log_decay: tl.tensor,
    block_rows: tl.tensor,
    block_firsts: tl.tensor,
    bases: tl.tensor,
    offsets: tl.tensor,
    starts: tl.tensor,
    slots: tl.tensor,
    kept: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    DIM: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    SEGMENT: tl.constexpr,
    KEEP: tl.constexpr,
) -> None:
    """Program (values, head, segment or kept state).

    A segment's own sum is stored at the place of the next one's state in carried [., H, d, v]. KEEP: the state at a
    kept place is stored into its slot.
    """
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    i = tl.arange(0, BLOCK)
    j = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_value = (j < VALUES)[None, :]
    inside = (i < DIM)[:, None] & in_value
    plane = head * (DIM * VALUES) + i[:, None] * VALUES + j[None, :]
    whole = heads * (DIM * VALUES)
    if KEEP:
        items = tl.num_programs(2)
        item = tl.program_id(2)
        row = tl.load(kept + item)
        stop = tl.load(kept + items + item)
        to = state + tl.load(kept + 2 * items + item).to(tl.int64) * whole
        first = (stop - 1) // SEGMENT * SEGMENT
        count = stop - first
        base = tl.load(bases + row)
        carry = (base + first // SEGMENT).to(tl.int64) * whole
        own = tl.load(slots + row).to(tl.int64) * whole
        if base >= 0:
            current = tl.load(carried + carry + plane, mask=inside, other=0.0)
        else:
            held = i < tl.where(tl.load(starts + row) > 0, DIM, 0)
            current = tl.load(state + own + plane, mask=held[:, None] & in_value, other=0.0)
    else:
        row = tl.load(block_rows + tl.program_id(2))
        first = tl.load(block_firsts + tl.program_id(2))
        count = SEGMENT
        if first + SEGMENT >= tl.load(offsets + row + 1) - tl.load(offsets + row):
            return
        to = carried + (tl.load(bases + row) + first // SEGMENT + 1).to(tl.int64) * whole
        current = tl.zeros([BLOCK, BLOCK_V], tl.float32)

    g = tl.load(log_decay + head)
    token = (tl.load(offsets + row) + first).to(tl.int64)
    for chunk in range(0, count, CHUNK):
        n = chunk + tl.arange(0, CHUNK)
        live = (n < count)[:, None]
        k_at = k + (token + n)[:, None] * k_token + head * k_head + i[None, :]
        v_at = v + (token + n)[:, None] * v_token + head * v_head + j[None, :]
        key = tl.load(k_at, mask=live & (i < DIM)[None, :], other=0.0).to(tl.float32)
        value = tl.load(v_at, mask=live & (j < VALUES)[None, :], other=0.0).to(tl.float32)
        current = _added(key, value, current, g, tl.minimum(count - chunk, CHUNK), CHUNK)
    tl.store(to + plane, current, mask=inside)


@triton.jit
def _scan_kernel(
    state: tl.tensor,
    carried: tl.tensor,
    log_decay: tl.tensor,
    bases: tl.tensor,
    offsets: tl.tensor,
    starts: tl.tensor,
    slots: tl.tensor,
    PLANE: tl.constexpr,
    BLOCK: tl.constexpr,
    SEGMENT: tl.constexpr,
) -> None:
    """Program (elements, head, row): sums of segments in carried become the states that segments begin with."""
    head = tl.program_id(1)
    row = tl.program_id(2)
    base = tl.load(bases + row)
    if base < 0:
        return
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < PLANE
    whole = tl.num_programs(1) * PLANE
    at = head * PLANE + element
    held = element < tl.where(tl.load(starts + row) > 0, PLANE, 0)
    current = tl.load(state + tl.load(slots + row).to(tl.int64) * whole + at, mask=held, other=0.0)
    decay = tl.exp(tl.load(log_decay + head) * SEGMENT)
    to = carried + base.to(tl.int64) * whole + at
    tl.store(to, current, mask=inside)
    for _ in range(1, tl.cdiv(tl.load(offsets + row + 1) - tl.load(offsets + row), SEGMENT)):
        to += whole
        current = current * decay + tl.load(to, mask=inside, other=0.0)
        tl.store(to, current, mask=inside)


@triton.jit
def _outputs_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    state: tl.tensor,
    carried: tl.tensor,
    out: tl.tensor,
    log_decay: tl.tensor,
    block_rows: tl.tensor,
    block_firsts: tl.tensor,
    bases: tl.tensor,
    offsets: tl.tensor,
    starts: tl.tensor,
    slots: tl.tensor,
    scale: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    DIM: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    SEGMENT: tl.constexpr,
) -> None:
    """Program (values, head, segment): the segment's outputs, and the row's state if it is the last one."""
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    row = tl.load(block_rows + tl.program_id(2))
    first = tl.load(block_firsts + tl.program_id(2))
    offset = tl.load(offsets + row)
    length = tl.load(offsets + row + 1) - offset
    # Rows of one token are cheaper in the step kernel.
    if length == 1:
        return
    count = tl.minimum(length - first, SEGMENT)
    i = tl.arange(0, BLOCK)
    j = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = (i < DIM)[:, None] & (j < VALUES)[None, :]
    plane = head * (DIM * VALUES) + i[:, None] * VALUES + j[None, :]
    whole = heads * (DIM * VALUES)
    base = tl.load(bases + row)
    own = state + tl.load(slots + row).to(tl.int64) * whole + plane
    if base >= 0:
        current = tl.load(carried + (base + first // SEGMENT).to(tl.int64) * whole + plane, mask=inside, other=0.0)
    else:
        held = i < tl.where(tl.load(starts + row) > 0, DIM, 0)
        current = tl.load(own, mask=held[:, None] & (j < VALUES)[None, :], other=0.0)

    g = tl.load(log_decay + head)
    step = tl.arange(0, CHUNK)
    distance = step[:, None] - step[None, :]
    within = tl.where(distance >= 0, tl.exp(g * tl.maximum(distance, 0).to(tl.float32)), 0.0)
    from_start = tl.exp(g * (step + 1).to(tl.float32))
    token = (offset + first).to(tl.int64)
    for chunk in range(0, count, CHUNK):
        n = chunk + step
        live = (n < count)[:, None]
        at = (token + n)[:, None]
        in_key, in_value = live & (i < DIM)[None, :], live & (j < VALUES)[None, :]
        query = tl.load(q + at * q_token + head * q_head + i[None, :], mask=in_key, other=0.0).to(tl.float32)
        key = tl.load(k + at * k_token + head * k_head + i[None, :], mask=in_key, other=0.0).to(tl.float32)
        value = tl.load(v + at * v_token + head * v_head + j[None, :], mask=in_value, other=0.0).to(tl.float32)
        result = tl.dot(query, current, input_precision="tf32") * from_start[:, None]
        scores = tl.dot(query, tl.trans(key), input_precision="tf32") * within
        result = tl.dot(scores, value, result, input_precision="tf32") * scale
        tl.store(out + (at * heads + head) * VALUES + j[None, :], result, mask=in_value)
        current = _added(key, value, current, g, tl.minimum(count - chunk, CHUNK), CHUNK)
    if first + SEGMENT >= length:
        tl.store(own, current, mask=inside)


# Wider tiles spill, because the factors of fp32 products are in registers.
_BASE: Config = {"SEGMENT": 512, "BLOCK_V": 32, "num_warps": 8, "num_stages": 2}
_SCAN_BLOCK = 1024


def _default(card: Device) -> Config:
    """Hopper's and data-centre Blackwell's matrix units take 64 rows at once; elsewhere only 32 fit."""
    return {**_BASE, "CHUNK": 64 if card.capability[0] in (9, 10) else 32}


def chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    out: Tensor,
    log_decay: Tensor,
    rows: Rows,
    tuned: Config | None = None,
) -> None:
    """Compute `out` and the new states of rows with several tokens, and store the states to keep of all rows.

    It reads the states before the step, so it runs before rows of one token advance theirs.
    """
    _, heads, dim = k.shape
    values = v.shape[2]
    check_layout(state, q, k, v)
    chosen = dict(
        tuned or config("lightning_attention", (len(rows.counts), rows.longest, heads), _default(device_of(k)))
    )
    segment = chosen.pop("SEGMENT")
    blocks = rows.blocks(segment)
    carried = torch.empty((blocks.several, heads, dim, values), dtype=torch.float32, device=k.device)
    block_v = min(chosen.pop("BLOCK_V"), max(triton.next_power_of_2(values), 16))
    value_blocks = triton.cdiv(values, block_v)
    where = (blocks.bases, rows.token_offsets, rows.row_starts, rows.slots)
    key_strides = (k.stride(0), k.stride(1), v.stride(0), v.stride(1))
    sizes = {
        "DIM": dim,
        "VALUES": values,
        "BLOCK": max(triton.next_power_of_2(dim), 16),
        "BLOCK_V": block_v,
        "SEGMENT": segment,
        **chosen,
    }

    def advance(items: int, kept: Tensor, keep: bool) -> None:
        runs = (blocks.rows, blocks.firsts)
        _advance_kernel[(value_blocks, heads, items)](
            k, v, state, carried, log_decay, *runs, *where, kept, *key_strides, **sizes, KEEP=keep
        )

    if blocks.several:
        advance(blocks.count, blocks.rows, keep=False)
        _scan_kernel[(triton.cdiv(dim * values, _SCAN_BLOCK), heads, len(rows.counts))](
            state, carried, log_decay, *where, PLANE=dim * values, BLOCK=_SCAN_BLOCK, SEGMENT=segment
        )
    if rows.keeps:
        advance(len(rows.keeps), rows.kept, keep=True)
    if rows.longer:
        _outputs_kernel[(value_blocks, heads, blocks.count)](
            q,
            k,
            v,
            state,
            carried,
            out,
            log_decay,
            blocks.rows,
            blocks.firsts,
            *where,
            dim**-0.5,
            q.stride(0),
            q.stride(1),
            *key_strides,
            **sizes,
        )
