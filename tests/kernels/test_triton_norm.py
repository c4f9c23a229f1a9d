"""Tests the RMSNorm kernels against their references."""

import pytest
import torch

from kernels.device import Device
from kernels.norm import add_rms_norm_reference, add_rms_norm_triton, rms_norm_reference, rms_norm_triton
from tests.kernels.conftest import close

EPS = 1e-6


def on_card(card: Device) -> None:
    for tokens in (1, 128):
        x, weight = (torch.empty(s, 4096, dtype=torch.bfloat16, device="meta") for s in (tokens, 1))
        add_rms_norm_triton(x, x, weight[0], EPS)
        rms_norm_triton(x[:, :1536], weight[0, :1536], EPS)


@pytest.mark.parametrize(("tokens", "size"), [(0, 32), (1, 1), (3, 63), (2, 64), (5, 65), (1, 700)])
@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_rms_norm(tokens: int, size: int, scale: float, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(size)
    # Rows of a wider matrix whose other columns must not be read.
    x = torch.full((tokens, size + 7), float("nan"), device=device)
    x[:, :size] = torch.randn(tokens, size, device=device) * scale
    x, weight = x.to(dtype)[:, :size], torch.randn(size, device=device).to(dtype)
    close(rms_norm_triton(x, weight, EPS), rms_norm_reference(x, weight, EPS))


@pytest.mark.parametrize(("tokens", "size"), [(0, 8), (1, 65), (4, 128)])
def test_add_rms_norm(tokens: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(tokens, size, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(size, device=device).to(dtype)
    got, total = add_rms_norm_triton(x, residual, weight, EPS)
    expected, expected_total = add_rms_norm_reference(x, residual, weight, EPS)
    close(got, expected)
    assert torch.equal(total, expected_total)


def test_zeros_stay_zeros(device: torch.device) -> None:
    assert not rms_norm_triton(torch.zeros(2, 9, device=device), torch.ones(9, device=device), EPS).any()
