"""Linear attention with one constant decay a head (Lightning Attention-2, Qin et al. 2024)."""

import torch
from torch import Tensor

from kernels.ragged import Rows

_CHUNK = 64


def lightning_attention(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows) -> Tensor:
    """Per token and head S <- e^g S + k^T v, then o = (q d^-1/2) S.

    q, k, v: [T, H, d] fp32. state: [slots, H, d_key, d_value] fp32, a row's slot read before its first token
    and written after its last; a row starting at 0 reads zeros. log_decay: g [H] fp32, <= 0.
    Returns [T, H, d_value] fp32.
    """
    q = q * q.shape[-1] ** -0.5
    if not rows.longer:
        return _singles(q, k, v, state, log_decay, rows)
    out = torch.empty_like(v)
    if rows.single_tokens is not None and rows.single_tokens.numel():
        at = rows.single_tokens
        out[at] = _singles(q[at], k[at], v[at], state, log_decay, rows)
    for i in rows.longer:
        token = slice(rows.offsets[i], rows.offsets[i] + rows.counts[i])
        slot = rows.slots[i : i + 1]
        before = state.index_select(0, slot)[0] if rows.starts[i] else torch.zeros_like(state[0])
        out[token], after = _row(q[token], k[token], v[token], before, log_decay)
        state.index_copy_(0, slot, after[None])
    return out


def _singles(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows) -> Tensor:
    """One token a row, all rows at once: [S, H, d]."""
    current = state.index_select(0, rows.single_slots)
    if rows.single_fresh is not None:
        current.masked_fill_(rows.single_fresh[:, None, None, None], 0.0)
    current.mul_(log_decay.exp()[:, None, None]).addcmul_(k[..., None], v[:, :, None])
    state.index_copy_(0, rows.single_slots, current)
    return torch.matmul(q[:, :, None], current)[:, :, 0]


def _row(q: Tensor, k: Tensor, v: Tensor, before: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """One row's tokens [n, H, d] from state [H, dk, dv]: whole chunks together, then what is left over."""
    whole = q.shape[0] // _CHUNK * _CHUNK
    outs = []
    for part in (slice(0, whole), slice(whole, q.shape[0])):
        if part.start < part.stop:
            out, before = _chunks(q[part], k[part], v[part], before, log_decay, min(_CHUNK, part.stop - part.start))
            outs.append(out)
    return torch.cat(outs), before


def _chunks(q: Tensor, k: Tensor, v: Tensor, before: Tensor, log_decay: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[n * size, H, d] as n chunks: attention within each, and the state handed from one to the next.

    Every exponent is a decay over a distance >= 0, so nothing overflows however strong the decay.
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
