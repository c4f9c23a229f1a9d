"""A linear-attention layer without its projections."""

import torch
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.group_norm_gate import group_rms_norm_gate, group_rms_norm_gate_reference, group_rms_norm_gate_triton
from kernels.lightning.attention import lightning_attention_reference, lightning_attention_triton
from kernels.lightning.step import Around, step
from kernels.lightning.verify import lightning_verify
from kernels.rope import qk_norm_rope, qk_norm_rope_reference, qk_norm_rope_triton
from kernels.varlen import Rows

# Up to this number of rows of one token, a step is bound by launches, not by the states that it moves.
_FEW = 16


def lightning_layer_reference(
    projected: Tensor,
    qk_weight: Tensor,
    out_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    groups: int,
    eps: float,
    state: Tensor,
    log_decay: Tensor,
    rows: Rows,
) -> Tensor:
    """`qk_norm_rope`, `lightning_attention`, then `group_rms_norm_gate`: [T, H * d] in projected's dtype.

    projected: [T, 4, H, d], queries, keys, values and gates. The rest is as those take it, eps for both norms.
    """
    q, k = qk_norm_rope_reference(projected[:, :2], qk_weight, cos, sin, eps).unbind(1)
    out = lightning_attention_reference(q, k, projected[:, 2], state, log_decay, rows)
    return group_rms_norm_gate_reference(out, projected[:, 3].flatten(1), out_weight, groups, eps)


def lightning_layer_triton(
    projected: Tensor,
    qk_weight: Tensor,
    out_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    groups: int,
    eps: float,
    state: Tensor,
    log_decay: Tensor,
    rows: Rows,
) -> Tensor:
    """One launch for a few rows of one token each, otherwise one launch per operation."""
    tokens, _, heads, _ = projected.shape
    v, gate = projected[:, 2], projected[:, 3].flatten(1)
    if rows.longer or rows.keeps or tokens > _FEW or heads % groups:
        q, k = qk_norm_rope_triton(projected[:, :2], qk_weight, cos, sin, eps).unbind(1)
        out = lightning_attention_triton(q, k, v, state, log_decay, rows)
        return group_rms_norm_gate_triton(out, gate, out_weight, groups, eps)
    out = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    gated = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    around = Around(qk_weight, cos, sin, gate, out_weight, groups, gated, eps)
    step(projected[:, 0], projected[:, 1], v, state, out, log_decay, rows, around=around)
    return gated


lightning_layer = dispatch(lightning_layer_reference, lightning_layer_triton)


def lightning_layer_verify(
    projected: Tensor,
    qk_weight: Tensor,
    out_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    groups: int,
    eps: float,
    state: Tensor,
    log_decay: Tensor,
    rows: Rows,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Compute what `lightning_layer` returns for rows that end in drafts, without changing any state.

    keys, values: [>= T, H, d]; the first T take what `lightning_commit` needs to advance the states later.
    """
    tokens = projected.shape[0]
    q, k = qk_norm_rope(projected[:, :2], qk_weight, cos, sin, eps).unbind(1)
    keys[:tokens], values[:tokens] = k, projected[:, 2]
    out = lightning_verify(q, k, projected[:, 2], state, log_decay, rows)
    return group_rms_norm_gate(out, projected[:, 3].flatten(1), out_weight, groups, eps)
