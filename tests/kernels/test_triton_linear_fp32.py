"""Tests the fp32 product's kernel and reference against fp64."""

from importlib import import_module

import pytest
import torch

from kernels.device import Device
from kernels.linear.fp32 import linear_fp32_reference, linear_fp32_triton
from tests.kernels.conftest import close

SMALL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}


def on_card(card: Device) -> None:
    for outputs in (256, 157184, 39296):
        weight = torch.empty(outputs, 4096, dtype=torch.bfloat16, device="meta")
        for tokens in (1, 32, 128) if outputs != 256 else (1, 32, 128, 8192):
            linear_fp32_triton(torch.empty(tokens, 4096, dtype=torch.bfloat16, device="meta"), weight)
    linear_fp32_triton(torch.empty(1, 4096, device="meta"), torch.empty(256, 4096, device="meta"))


@pytest.mark.parametrize(("tokens", "outputs", "size"), [(0, 5, 8), (1, 1, 1), (17, 33, 65), (3, 64, 96)])
def test_kernel(tokens: int, outputs: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    wide = torch.full((tokens, size + 3), float("nan"), device=device)
    wide[:, :size] = torch.randn(tokens, size, device=device)
    x, weight = wide.to(dtype)[:, :size], torch.randn(outputs, size, device=device).to(dtype)
    expected = x.double() @ weight.double().t()
    for tuned in (SMALL, None):
        close(linear_fp32_triton(x, weight, tuned), expected, torch.float32)


def test_reference_of_bf16_rounds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 40).bfloat16(), torch.randn(11, 40).bfloat16()
    whole = linear_fp32_reference(x, weight)
    assert whole.dtype == torch.float32
    close(whole, x.double() @ weight.double().t())
    monkeypatch.setattr(import_module("kernels.linear.fp32"), "_CHUNK", 100)
    close(linear_fp32_reference(x, weight), whole)
