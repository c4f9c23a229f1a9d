"""Tests the kernel of group norm and gate against its reference."""

import pytest
import torch

from kernels.device import Device
from kernels.group_norm_gate import group_rms_norm_gate_reference, group_rms_norm_gate_triton
from tests.kernels.conftest import close

EPS = 1e-6


def on_card(card: Device) -> None:
    x = torch.empty(8, 32, 128, device="meta")
    gate = torch.empty(8, 4096, dtype=torch.bfloat16, device="meta")
    group_rms_norm_gate_triton(x, gate, gate[0], 4, EPS)


@pytest.mark.parametrize(("tokens", "groups", "size"), [(0, 1, 8), (1, 4, 1), (3, 2, 65), (2, 1, 128)])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_group_norm_gate(
    tokens: int, groups: int, size: int, scale: float, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, groups * size, device=device) * scale
    gate = (torch.randn(tokens, groups * size, device=device) * 50).to(dtype)
    weight = torch.randn(groups * size, device=device).to(dtype)
    got = group_rms_norm_gate_triton(x, gate, weight, groups, EPS)
    close(got, group_rms_norm_gate_reference(x, gate, weight, groups, EPS))
