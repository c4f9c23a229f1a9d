"""What leaves a linear-attention layer: RMSNorm over groups of channels, then a sigmoid gate."""

from torch import Tensor

from kernels.norm import unit_rms


def group_rms_norm_gate(x: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """RMSNorm of x [T, C] over each of `groups` equal runs of channels, times weight [C], times sigmoid(gate).

    x: fp32. gate: [T, C] in the compute dtype, which the result has; all arithmetic is fp32.
    """
    tokens, channels = gate.shape
    normed = unit_rms(x.view(tokens, groups, channels // groups), eps).view(tokens, channels)
    return (normed * weight * gate.float().sigmoid()).to(gate.dtype)
