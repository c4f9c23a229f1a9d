"""The end of a linear-attention layer: RMSNorm over groups of channels, then a sigmoid gate."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.norm import row_warps, unit_rms
from kernels.tuning import Config, config


def group_rms_norm_gate_reference(x: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """RMSNorm of x [T, C] over each of `groups` equal runs of channels, times weight [C], times sigmoid(gate).

    x: fp32. gate: [T, C] in the compute dtype, which the result has; all arithmetic is fp32.
    """
    tokens, channels = gate.shape
    normed = unit_rms(x.view(tokens, groups, channels // groups), eps).view(tokens, channels)
    return (normed * weight * gate.float().sigmoid()).to(gate.dtype)


@triton.jit
def normed_and_gated(
    x: tl.tensor, gate: tl.tensor, weight: tl.tensor, inside: tl.tensor, size: tl.tensor, eps: tl.tensor
) -> tl.tensor:
    """Inside kernels: norm and gate one group's channels x, which are fp32 and zero outside of `inside`.

    gate, weight: pointers.
    """
    x *= 1.0 / tl.sqrt(tl.sum(x * x) / size + eps)
    x *= tl.load(weight, inside, 0.0).to(tl.float32)
    return x * (1.0 / (1.0 + tl.exp(-tl.load(gate, inside, 0.0).to(tl.float32))))


@triton.jit
def _group_rms_norm_gate_kernel(
    x: tl.tensor,
    gate: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    groups: tl.tensor,
    gate_stride: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = group * size + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < size
    at = token * groups * size + channel
    row = tl.load(x + at, inside, 0.0)
    row = normed_and_gated(row, gate + token * gate_stride + channel, weight + channel, inside, size, eps)
    tl.store(out + at, row.to(out.dtype.element_ty), inside)


def group_rms_norm_gate_triton(
    x: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float, tuned: Config | None = None
) -> Tensor:
    """One program per token and group; the gate's rows need not be adjacent."""
    tokens, channels = gate.shape
    size = channels // groups
    out = torch.empty(tokens, channels, dtype=gate.dtype, device=gate.device)
    if tokens:
        launch = tuned or config("group_rms_norm_gate", (tokens, size), {"num_warps": row_warps(size)})
        block = triton.next_power_of_2(size)
        _group_rms_norm_gate_kernel[(tokens, groups)](
            x, gate, weight, out, size, groups, gate.stride(0), eps, BLOCK=block, **launch
        )
    return out


group_rms_norm_gate = dispatch(group_rms_norm_gate_reference, group_rms_norm_gate_triton)
