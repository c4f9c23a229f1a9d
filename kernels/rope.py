"""Rotary position embedding (Su et al. 2021) in the two layouts of the model."""

import torch
from torch import Tensor

from kernels.norm import unit_rms


def qk_norm_rope(qk: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMSNorm per head, then rope over the first 2R dims in half-split pairs (i, i + R).

    qk: [T, 2, H, d], queries then keys. weight: [2, 1, d]. cos, sin: [T, R] fp32. Returns [T, 2, H, d] fp32,
    rounded to qk's dtype between norm and rope as RMSNorm does.
    """
    normed = (unit_rms(qk.float(), eps).to(qk.dtype) * weight).float()
    half = cos.shape[-1]
    cos, sin = cos[:, None, None], sin[:, None, None]
    first, second, rest = normed.split_with_sizes((half, half, qk.shape[-1] - 2 * half), -1)
    return torch.cat(
        (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin), rest), -1
    )


def rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rope over all of x's last dimension in pairs (2i, 2i + 1).

    x: [T, H, 2R]. cos, sin: [T, R] fp32. Returns x's dtype; the arithmetic is fp32.
    """
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    turned = pairs * torch.complex(cos, sin)[:, None]
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
