"""Lightning attention token by token in registers: each row's state is read once and written once."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from kernels.group_norm_gate import normed_and_gated
from kernels.pdl import LAUNCH, after_previous
from kernels.rope import normed_and_turned
from kernels.split_k import arrivals, is_last
from kernels.tuning import Config, config
from kernels.varlen import Rows


@triton.jit
def _step_kernel(  # noqa: PLR0915
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
    qk_weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    gate: tl.tensor,
    out_weight: tl.tensor,
    gated: tl.tensor,
    arrivals: tl.tensor,
    half: tl.tensor,
    gate_token: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SINGLE: tl.constexpr,
    MIXED: tl.constexpr,
    LIMITED: tl.constexpr,
    ATTEND: tl.constexpr,
    WRITE: tl.constexpr,
    RAW: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
) -> None:
    """Program (values, head, row): the row's tokens one after another, for BLOCK_V of the values.

    SINGLE: every row has one token. MIXED: rows with another number of tokens are left to another kernel.
    LIMITED: no more than limits [B] of a row's tokens count. ATTEND: give outputs; WRITE: store the state.
    RAW: queries and keys have neither norm nor rope yet. GROUPS, where not 0: the last of the programs of a group of
    heads norms and gates its outputs; with it, every row has one token.
    """
    after_previous()
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
    # A row that starts at 0 has no state yet, so its slot's content is ignored.
    held = i < tl.where(start > 0, DIM, 0)
    current = tl.load(at, mask=held[:, None] & in_value[None, :], other=0.0)
    decay = tl.exp(tl.load(log_decay + head))
    for n in range(count):
        token = first + n
        if RAW:
            # Loaded as a block of one head.
            one = tl.zeros([1, 1], tl.int32)
            key_at, query_at = k + token * k_token + head * k_head + one, q + token * q_token + head * q_head + one
            c, s = cos + token * half, sin + token * half
            key = normed_and_turned(key_at, qk_weight + DIM, c, s, one == 0, DIM, half, eps, BLOCK)
            key = tl.reshape(key, [BLOCK])
            query = tl.reshape(normed_and_turned(query_at, qk_weight, c, s, one == 0, DIM, half, eps, BLOCK), [BLOCK])
        else:
            key = tl.load(k + token * k_token + head * k_head + i, mask=in_key, other=0.0).to(tl.float32)
            query = tl.load(q + token * q_token + head * q_head + i, mask=in_key, other=0.0).to(tl.float32)
        value = tl.load(v + token * v_token + head * v_head + j, mask=in_value, other=0.0).to(tl.float32)
        current = current * decay + key[:, None] * value[None, :]
        if ATTEND:
            result = tl.sum(query[:, None] * current, 0) * scale
            tl.store(out + (token * tl.num_programs(1) + head) * VALUES + j, result, mask=in_value)
    if GROUPS > 0:
        each = tl.num_programs(1) // GROUPS
        group = head // each
        if is_last(arrivals + row * GROUPS + group, each * tl.num_programs(0)):
            size = each * VALUES
            channel = group * size + tl.arange(0, GROUP_BLOCK)
            mine = tl.arange(0, GROUP_BLOCK) < size
            place = first * GROUPS * size + channel
            line = tl.load(out + place, mine, 0.0, cache_modifier=".cg")
            line = normed_and_gated(line, gate + first * gate_token + channel, out_weight + channel, mine, size, eps)
            tl.store(gated + place, line.to(gated.dtype.element_ty), mine)
    # Stored last; otherwise programs that arrive above would wait for the states to reach memory.
    if WRITE:
        tl.store(at, current, mask=inside)


@dataclass(frozen=True, slots=True)
class Around:
    """The operations around the attention of rows of one token each, which are fused with it.

    qk_weight [2, 1, d], cos, sin [T, R]: `qk_norm_rope`'s. gate [T, H * d], out_weight [H * d], groups:
    `group_rms_norm_gate`'s. gated: [T, H * d], its result. eps: of both norms.
    """

    qk_weight: Tensor
    cos: Tensor
    sin: Tensor
    gate: Tensor
    out_weight: Tensor
    groups: int
    gated: Tensor
    eps: float


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
    around: Around | None = None,
    tuned: Config | None = None,
) -> None:
    """Advance rows' states by their tokens, or by the first limits [B] of them; with q, fill `out`.

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
    nothing = (k,) * 7 + (0, 0, 0.0)
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
        *(nothing if around is None else _arguments(around, tokens)),
        DIM=dim,
        VALUES=values,
        BLOCK=triton.next_power_of_2(dim),
        BLOCK_V=block_v,
        SINGLE=rows.longest == 1 and limits is None,
        MIXED=mixed,
        LIMITED=limits is not None,
        ATTEND=q is not None,
        WRITE=write,
        RAW=around is not None,
        GROUPS=0 if around is None else around.groups,
        GROUP_BLOCK=1 if around is None else triton.next_power_of_2(around.gate.shape[1] // around.groups),
        **chosen,
        **LAUNCH,
    )


def _arguments(around: Around, tokens: int) -> tuple[Tensor | int | float, ...]:
    return (
        around.qk_weight,
        around.cos,
        around.sin,
        around.gate,
        around.out_weight,
        around.gated,
        arrivals(around.gate.device, tokens * around.groups),
        around.cos.shape[1],
        around.gate.stride(0),
        around.eps,
    )


def check_layout(state: Tensor, *per_token: Tensor) -> None:
    """ValueError for tensors in a layout that the kernels don't support."""
    if not state.is_contiguous() or any(x.stride(2) != 1 for x in per_token):
        raise ValueError("linear states must be contiguous, and the channels of queries, keys and values adjacent")
