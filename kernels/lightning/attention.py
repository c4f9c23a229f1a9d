"""Linear attention with one constant decay per head (Lightning Attention-2, Qin et al. 2024)."""

from itertools import pairwise

import torch
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.lightning.chunks import chunks
from kernels.lightning.step import step
from kernels.varlen import Rows

_CHUNK = 64


def lightning_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows
) -> Tensor:
    """Per token and head S <- e^g S + k^T v, then o = (q d^-1/2) S.

    q, k, v: [T, H, d] in any float dtype. state: [slots, H, d_key, d_value] fp32, a row's slot read before its first
    token and written after its last; a row starting at 0 reads zeros; where `rows` keeps a state, its slot is written
    too. log_decay: g [H] fp32, <= 0. Returns [T, H, d_value] fp32; arithmetic is fp32, except that on a GPU the matrix
    products of rows of several tokens take their factors in tf32.

    A decode step moves 128 KiB a row and head at d = 128, each state once in and once out: at 4.3 TB/s 0.98 us a row
    of 32 heads, 125 us a layer for 128 rows. A prompt's tokens need 98 kFLOP a head: 26 GFLOP a layer at 8k tokens and
    32 heads, 0.1 ms at 250 TFLOP/s.
    """
    q, k, v = q.float() * q.shape[-1] ** -0.5, k.float(), v.float()
    kept = {i: [keep for keep in rows.keeps if keep.row == i] for i in {keep.row for keep in rows.keeps}}
    if not rows.longer:
        out = _singles(q, k, v, state, log_decay, rows)
    else:
        out = torch.empty_like(v)
        at = rows.singles.tokens
        if at is not None and at.numel():
            out[at] = _singles(q[at], k[at], v[at], state, log_decay, rows)
        for i in rows.longer:
            slot = rows.slots[i : i + 1]
            current = state.index_select(0, slot)[0] if rows.starts[i] else torch.zeros_like(state[0])
            stops = {keep.count for keep in kept.get(i, ())}
            for a, b in pairwise(sorted({0, *stops, rows.counts[i]})):
                part = slice(rows.offsets[i] + a, rows.offsets[i] + b)
                out[part], current = _row(q[part], k[part], v[part], current, log_decay)
                for keep in kept.get(i, ()):
                    if keep.count == b:
                        state[keep.slot] = current
            state.index_copy_(0, slot, current[None])
    for keep in rows.keeps:
        if rows.counts[keep.row] == 1:
            state[keep.slot] = state[rows.slots[keep.row]]
    return out


def _singles(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows) -> Tensor:
    """Compute rows of one token, all at once: [S, H, d]."""
    current = state.index_select(0, rows.singles.slots)
    if rows.singles.fresh is not None:
        current.masked_fill_(rows.singles.fresh[:, None, None, None], 0.0)
    current.mul_(log_decay.exp()[:, None, None]).addcmul_(k[..., None], v[:, :, None])
    state.index_copy_(0, rows.singles.slots, current)
    return torch.matmul(q[:, :, None], current)[:, :, 0]


def _row(q: Tensor, k: Tensor, v: Tensor, before: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one row's tokens [n, H, d] from state [H, dk, dv]: whole chunks together, then the rest."""
    whole = q.shape[0] // _CHUNK * _CHUNK
    outs = []
    for part in (slice(0, whole), slice(whole, q.shape[0])):
        if part.start < part.stop:
            out, before = _chunks(q[part], k[part], v[part], before, log_decay, min(_CHUNK, part.stop - part.start))
            outs.append(out)
    return torch.cat(outs), before


def _chunks(q: Tensor, k: Tensor, v: Tensor, before: Tensor, log_decay: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Compute [n * size, H, d] as n chunks: attention within each, and the state passed from one to the next.

    Every exponent is a decay over a distance >= 0, so nothing overflows, even with a strong decay.
    """
    q, k, v = (x.reshape(-1, size, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    step = torch.arange(size, device=q.device)
    distance = (step[:, None] - step).clamp(min=0)
    within = torch.exp(log_decay[:, None, None] * distance).tril()
    from_start = torch.exp(log_decay[:, None] * (step + 1))[..., None]
    to_end = torch.exp(log_decay[:, None] * (size - 1 - step))[..., None]

    added = torch.matmul((k * to_end).transpose(-1, -2), v)
    decay = torch.exp(log_decay * size)[:, None, None]
    states = []
    for chunk in added:
        states.append(before)
        before = torch.addcmul(chunk, before, decay)
    out = torch.matmul(torch.matmul(q, k.transpose(-1, -2)) * within, v)
    out += torch.matmul(q * from_start, torch.stack(states))
    return out.transpose(1, 2).flatten(0, 1), before


def lightning_attention_triton(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows) -> Tensor:
    """Rows of one token by the step kernel, longer ones in chunks."""
    out = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    if rows.longer or rows.keeps:
        chunks(q, k, v, state, out, log_decay, rows)
    if len(rows.longer) < len(rows.counts):
        step(q, k, v, state, out, log_decay, rows, mixed=bool(rows.longer))
    return out


lightning_attention = dispatch(lightning_attention_reference, lightning_attention_triton)
