"""Frequencies and angles of rotary embeddings, with YaRN (Peng et al. 2023)."""

import math

import torch
from torch import Tensor

from workers.model.config import Yarn


class Rope:
    """The angles for one rotary width. They are computed for each step, so that no table grows with the context."""

    def __init__(self, dim: int, theta: float, yarn: Yarn | None, device: torch.device) -> None:
        frequencies, self._factor = rope_frequencies(dim, theta, yarn)
        self._frequencies = frequencies.to(device)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, dim/2] fp32 of positions [T] int64, YaRN's attention factor in both."""
        angles = positions[:, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self._factor == 1.0 else (cos * self._factor, sin * self._factor)


def rope_frequencies(dim: int, theta: float, yarn: Yarn | None) -> tuple[Tensor, float]:
    """Frequencies [dim/2] fp32 in radians a position, and the factor on cos and sin."""
    plain = theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if yarn is None:
        return plain, 1.0

    def turning(turns: float) -> float:
        """The dimension that makes `turns` full turns over the original context."""
        return dim * math.log(yarn.original_max_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(turning(yarn.beta_fast)), 0)
    high = min(math.ceil(turning(yarn.beta_slow)), dim - 1)
    # Equal ends would divide by zero, so the ramp becomes a step.
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low if high > low else 0.001)
    slowed = ramp.clamp(0, 1)
    return plain / yarn.factor * slowed + plain * (1 - slowed), yarn.on_rotary
