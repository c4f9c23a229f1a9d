"""Tests the quantizing kernels against their references, bit for bit if both get the same numbers."""

import pytest
import torch

from kernels.device import Device, without_fp8
from kernels.linear.linear import linear_reference, linear_triton
from kernels.linear.quantize import (
    add_rms_norm_quantized_reference,
    add_rms_norm_quantized_triton,
    dequantize_fp8,
    quantize_fp8_reference,
    quantize_fp8_triton,
    swiglu_quantized_reference,
    swiglu_quantized_triton,
)
from kernels.moe.experts import moe_experts_reference, moe_experts_triton
from tests.kernels.conftest import close
from tests.kernels.matrices import fp8, on_grid

SIZES = [(0, 128), (1, 1), (2, 127), (3, 128), (2, 300), (9, 129)]


def on_card(card: Device) -> None:
    for tokens in () if without_fp8(card) else (1, 128):
        x, weight = (torch.empty(n, 4096, dtype=torch.bfloat16, device="meta") for n in (tokens, 1))
        quantize_fp8_triton(x)
        add_rms_norm_quantized_triton(x, x, weight[0], 1e-6)
        swiglu_quantized_triton(x)


def _same(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[0].float(), expected[0].float())


@pytest.mark.parametrize(("tokens", "size"), SIZES)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_quantize(tokens: int, size: int, scale: float, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(size)
    x = torch.full((tokens, size + 5), float("nan"), device=device)
    x[:, :size] = torch.randn(tokens, size, device=device) * scale
    x = x.to(dtype)[:, :size]
    got = quantize_fp8_triton(x)
    _same(got, quantize_fp8_reference(x))
    if scale == 1.0:
        close(dequantize_fp8(*got), x, torch.float8_e4m3fn)


def test_zeros_stay_zeros(device: torch.device) -> None:
    q, scale = quantize_fp8_triton(torch.zeros(2, 256, device=device))
    assert not q.float().any()
    assert bool((scale > 0).all())


@pytest.mark.parametrize(("tokens", "size"), SIZES)
def test_quantizing_fused_with_the_operation_before_equals_both(
    tokens: int, size: int, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    x, residual, more = (torch.randn(tokens, size, device=device).to(dtype) for _ in range(3))
    weight = torch.randn(size, device=device).to(dtype)
    normed, total, *quantized = add_rms_norm_quantized_triton(x, residual, weight, 1e-6)
    expected, expected_total = add_rms_norm_quantized_reference(x, residual, weight, 1e-6)[:2]
    close(normed, expected)
    assert torch.equal(total, expected_total)
    _same((quantized[0], quantized[1]), quantize_fp8_reference(normed))

    pairs = torch.cat((x, more), -1)
    got, reference = swiglu_quantized_triton(pairs), swiglu_quantized_reference(pairs)
    close(got[1], reference[1])
    # One rounding step of the format where the two sides' last bits differ.
    close(got[0].float(), reference[0].float(), torch.float8_e4m3fn)


@pytest.mark.parametrize("tokens", [1, 17])
def test_products_accept_quantized_inputs(tokens: int, device: torch.device) -> None:
    torch.manual_seed(0)
    x, matrix = on_grid(tokens, 256, device), fp8((64, 256), torch.bfloat16, device)
    q, scale = quantize_fp8_reference(x)
    assert torch.equal(linear_reference(q, matrix, scale=scale), linear_reference(x, matrix))
    assert torch.equal(linear_triton(q, matrix, scale=scale), linear_triton(x, matrix))

    gate_up, down = fp8((4, 256, 256), torch.bfloat16, device), fp8((4, 256, 128), torch.bfloat16, device)
    ids = torch.rand(tokens, 4, device=device).argsort(-1)[:, :2]
    arguments = (x, ids, torch.rand(tokens, 2, device=device), gate_up, down, 0)
    for experts in (moe_experts_reference, moe_experts_triton):
        assert torch.equal(experts(*arguments, rounded=(q, scale)), experts(*arguments))


def test_products_that_do_not_quantize_refuse_quantized_inputs(device: torch.device) -> None:
    q, scale = quantize_fp8_reference(torch.ones(1, 128, device=device))
    for form in (linear_reference, linear_triton):
        with pytest.raises(ValueError, match="inputs that are not rounded"):
            form(q, fp8((64, 128), torch.float32, device), scale=scale)
