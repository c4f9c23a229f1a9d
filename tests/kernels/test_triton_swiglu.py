"""Tests the SwiGLU kernel against its reference."""

import pytest
import torch

from kernels.device import Device
from kernels.swiglu import swiglu_reference, swiglu_triton
from tests.kernels.conftest import close


def on_card(card: Device) -> None:
    for tokens, size in ((1, 1024), (64, 9216)):
        swiglu_triton(torch.empty(tokens, 2 * size, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize("shape", [(0, 8), (1, 2), (3, 126), (2, 130), (2, 1, 64)])
def test_swiglu(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, device=device) * 3).to(dtype)
    tuned = {"BLOCK": 32, "num_warps": 1}
    close(swiglu_triton(x, tuned), swiglu_reference(x))


def test_extreme_gates(device: torch.device) -> None:
    gates = [-3e38, -200.0, -0.0, 200.0, 1e38]
    x = torch.tensor([gates + [0.5] * len(gates)], device=device)
    close(swiglu_triton(x), swiglu_reference(x))
