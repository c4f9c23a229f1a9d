"""Lightning attention token by token in registers: the states of a step's rows read once and written once."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.ragged import Rows
from kernels.tuning import Config, config


@triton.jit
def _step_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    state: tl.tensor,
    out: tl.tensor,
    log_decay: tl.tensor,
    offsets: tl.tensor,
    starts: tl.tensor,
    slots: tl.tensor,
    limits: tl.tensor,
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
    SINGLE: tl.constexpr,
    MIXED: tl.constexpr,
    LIMITED: tl.constexpr,
    ATTEND: tl.constexpr,
    WRITE: tl.constexpr,
) -> None:
    """Program (values, head, row): the row's tokens one after another, for BLOCK_V of the values.

    SINGLE: every row has one token. MIXED: rows with another number of tokens are left to another kernel.
    LIMITED: no more than limits [B] of a row's tokens count. ATTEND: give outputs; WRITE: store the state.
    """
    head = tl.program_id(1)
    row = tl.program_id(2)
    start = tl.load(starts + row)
    slot = tl.load(slots + row).to(tl.int64)
    if SINGLE:
        first = row.to(tl.int64)
        count = 1
    else:
        first = tl.load(offsets + row).to(tl.int64)
        count = tl.load(offsets + row + 1) - first.to(tl.int32)
        if MIXED and count != 1:
            return
        if LIMITED:
            count = tl.minimum(count, tl.load(limits + row).to(tl.int32))
            if count == 0:
                return

    i = tl.arange(0, BLOCK)
    j = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_key, in_value = i < DIM, j < VALUES
    inside = in_key[:, None] & in_value[None, :]
    at = state + (slot * tl.num_programs(1) + head) * (DIM * VALUES) + i[:, None] * VALUES + j[None, :]
    # A row that starts at 0 has no state yet, whatever its slot holds.
    held = i < tl.where(start > 0, DIM, 0)
    current = tl.load(at, mask=held[:, None] & in_value[None, :], other=0.0)
    decay = tl.exp(tl.load(log_decay + head))
    for n in range(count):
        token = first + n
        key = tl.load(k + token * k_token + head * k_head + i, mask=in_key, other=0.0).to(tl.float32)
        value = tl.load(v + token * v_token + head * v_head + j, mask=in_value, other=0.0).to(tl.float32)
        current = current * decay + key[:, None] * value[None, :]
        if ATTEND:
            query = tl.load(q + token * q_token + head * q_head + i, mask=in_key, other=0.0).to(tl.float32)
            result = tl.sum(query[:, None] * current, 0) * scale
            tl.store(out + (token * tl.num_programs(1) + head) * VALUES + j, result, mask=in_value)
    if WRITE:
        tl.store(at, current, mask=inside)


def step(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    out: Tensor | None,
    log_decay: Tensor,
    rows: Rows,
    limits: Tensor | None = None,
    mixed: bool = False,
    write: bool = True,
    tuned: Config | None = None,
) -> None:
    """Move rows' states on by their tokens, or by the first limits [B] of them; with q, fill `out`.

    mixed: rows of one token alone. ValueError if the states are not contiguous or channels not adjacent.
    """
    tokens, heads, dim = k.shape
    values = v.shape[2]
    check_layout(state, k if q is None else q, k, v)
    default = {"BLOCK_V": 32, "num_warps": 4}
    chosen = dict(tuned or config("lightning_step", (len(rows.counts), rows.longest, heads), default))
    block_v = min(chosen.pop("BLOCK_V"), triton.next_power_of_2(values))
    if not tokens:
        return
    query = k if q is None else q
    _step_kernel[(triton.cdiv(values, block_v), heads, len(rows.counts))](
        query,
        k,
        v,
        state,
        state if out is None else out,
        log_decay,
        rows.token_offsets,
        rows.row_starts,
        rows.slots,
        rows.slots if limits is None else limits,
        dim**-0.5,
        query.stride(0),
        query.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        DIM=dim,
        VALUES=values,
        BLOCK=triton.next_power_of_2(dim),
        BLOCK_V=block_v,
        SINGLE=rows.longest == 1 and limits is None,
        MIXED=mixed,
        LIMITED=limits is not None,
        ATTEND=q is not None,
        WRITE=write,
        **chosen,
    )


def check_layout(state: Tensor, *per_token: Tensor) -> None:
    """ValueError for tensors laid out as the kernels don't take them."""
    if not state.is_contiguous() or any(x.stride(2) != 1 for x in per_token):
        raise ValueError("linear states must be contiguous, and the channels of queries, keys and values adjacent")
