"""Lightning attention over drafted tokens: computes outputs first, and later the state of the accepted tokens."""

import torch
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.lightning.step import step
from kernels.varlen import Rows, to_device


def lightning_verify_reference(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows) -> Tensor:
    """Compute what `lightning_attention` returns, without changing any state. For a few tokens per row.

    Moves 64 KiB a row and head at d = 128, however many tokens: half of a decode step. As the decay is constant, token
    j's output is e^(g (j + 1)) q_j S plus the sum over i <= j of e^(g (j - i)) (q_j k_i) v_i.
    """
    n = torch.arange(rows.longest, device=q.device)
    token = (rows.token_offsets[:-1, None] + n).clamp(max=q.shape[0] - 1)
    # [B, H, n, d]
    query, key, value = ((x.float()[token]).transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    held = state.index_select(0, rows.slots).masked_fill((rows.row_starts == 0)[:, None, None, None], 0.0)
    grown = torch.exp(log_decay[:, None] * (n + 1))[..., None]
    distance = n[:, None] - n
    fade = torch.exp(log_decay[:, None, None] * distance.clamp(min=0)) * (distance >= 0)
    scores = torch.matmul(query, key.transpose(2, 3)) * fade
    out = (torch.matmul(query * grown, held) + torch.matmul(scores, value)).transpose(1, 2).flatten(0, 1)
    places = [row * rows.longest + i for row, count in enumerate(rows.counts) for i in range(count)]
    if len(places) == len(out):
        return out.contiguous()
    return out.index_select(0, to_device(places, torch.int64, q.device))


def lightning_commit_reference(
    k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows, accepted: Tensor
) -> None:
    """Advance each row's state by the first accepted [B] (int32 or int64) of its tokens; 0 leaves it unchanged.

    k, v, state, log_decay, rows: as verified. No state but those of the rows' slots changes.
    """
    n = torch.arange(rows.longest, device=k.device)
    token = (rows.token_offsets[:-1, None] + n).clamp(max=k.shape[0] - 1)
    # A token's weight: e^(g distance to the last accepted one), and 0 after that one.
    left = accepted[:, None] - 1 - n
    weight = torch.exp(log_decay * left.clamp(min=0)[..., None]) * (left >= 0)[..., None]
    added = torch.matmul((k.float()[token] * weight[..., None]).permute(0, 2, 3, 1), v.float()[token].transpose(1, 2))
    held = state.index_select(0, rows.slots)
    # If no token is accepted, the state is multiplied by 1 and nothing is added, so it does not change.
    held.masked_fill_(((rows.row_starts == 0) & (accepted > 0))[:, None, None, None], 0.0)
    held.mul_(torch.exp(log_decay * accepted[:, None])[..., None, None])
    state.index_copy_(0, rows.slots, held.add_(added))


def lightning_verify_triton(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows) -> Tensor:
    """The step kernel without its store."""
    out = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    step(q, k, v, state, out, log_decay, rows, write=False)
    return out


def lightning_commit_triton(
    k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows, accepted: Tensor
) -> None:
    """The step kernel without its outputs."""
    step(None, k, v, state, None, log_decay, rows, limits=accepted)


lightning_verify = dispatch(lightning_verify_reference, lightning_verify_triton)
lightning_commit = dispatch(lightning_commit_reference, lightning_commit_triton)
