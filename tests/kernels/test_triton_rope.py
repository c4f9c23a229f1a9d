"""Tests the rope kernels against their references."""

import pytest
import torch

from kernels.device import Device
from kernels.rope import (
    qk_norm_rope_reference,
    qk_norm_rope_triton,
    rope_interleaved_reference,
    rope_interleaved_triton,
)
from tests.kernels.conftest import close

EPS = 1e-6


def on_card(card: Device) -> None:
    angles = torch.empty(8, 32, device="meta")
    qkv = torch.empty(8, 3, 32, 128, dtype=torch.bfloat16, device="meta")
    qk_norm_rope_triton(qkv[:, :2], qkv[0, :2, :1], angles, angles, EPS)
    rope_interleaved_triton(torch.empty(8, 32, 192, dtype=torch.bfloat16, device="meta")[..., 128:], angles, angles)


def _angles(tokens: int, half: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.rand(tokens, half, device=device) * 1000
    return angles.cos() * 1.07, angles.sin() * 1.07


@pytest.mark.parametrize(
    ("tokens", "heads", "size", "half"), [(0, 2, 8, 2), (1, 1, 16, 8), (3, 5, 128, 32), (2, 4, 24, 3)]
)
def test_qk_norm_rope(tokens: int, heads: int, size: int, half: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(tokens, 3, heads, size, device=device)
    qkv[:, 2] = float("nan")
    qk, weight = qkv.to(dtype)[:, :2], torch.randn(2, 1, size, device=device).to(dtype)
    cos, sin = _angles(tokens, half, device)
    close(qk_norm_rope_triton(qk, weight, cos, sin, EPS), qk_norm_rope_reference(qk, weight, cos, sin, EPS), dtype)


@pytest.mark.parametrize(("tokens", "heads", "half"), [(0, 1, 2), (1, 1, 1), (3, 9, 5), (2, 8, 32)])
def test_rope_interleaved(tokens: int, heads: int, half: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    wide = torch.full((tokens, heads, 2 * half + 4), float("nan"), device=device)
    wide[..., 4:] = torch.randn(tokens, heads, 2 * half, device=device)
    x = wide.to(dtype)[..., 4:]
    cos, sin = _angles(tokens, half, device)
    close(rope_interleaved_triton(x, cos, sin), rope_interleaved_reference(x, cos, sin))
