"""Tests the experts' kernels in every format against their reference."""

import pytest
import torch
from torch import Tensor

from kernels.device import Device, without_fp8
from kernels.linear.quantized import Matrix
from kernels.moe.experts import moe_experts_reference, moe_experts_triton
from tests.kernels.conftest import close
from tests.kernels.matrices import FORMATS, fp8, on_grid, plain

HELD = range(2, 7)
CHOICES = 9
TOP_K = 3


def on_card(card: Device) -> None:
    meta = torch.device("meta")
    for form, tokens in (("plain", 1), ("plain", 8192), ("fp8", 1), ("fp8", 128), ("fp8", 8192), ("int4", 1)):
        if form == "fp8" and without_fp8(card):
            continue
        x = torch.empty(tokens, 4096, dtype=torch.bfloat16, device=meta)
        ids = torch.empty(tokens, 8, dtype=torch.int64, device=meta)
        gate_up, down = (FORMATS[form](shape, torch.bfloat16, meta) for shape in ((256, 2048, 4096), (256, 4096, 1024)))
        moe_experts_triton(x, ids, torch.empty(tokens, 8, device=meta), gate_up, down, 0, x)


def _routes(tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random choices of three of the experts 0 to 8 per token; 4 is never chosen, the others unevenly."""
    order = torch.rand(tokens, CHOICES, device=device) * torch.arange(1, CHOICES + 1, device=device)
    order[:, 4] = -1.0
    return order.topk(TOP_K, dim=-1).indices, torch.rand(tokens, TOP_K, device=device)


def _stacks(form: str, width: int, inner: int, dtype: torch.dtype, device: torch.device) -> tuple[Matrix, Matrix]:
    shapes = ((len(HELD), 2 * inner, width), (len(HELD), width, inner))
    gate_up, down = (FORMATS[form](shape, dtype, device) for shape in shapes)
    if isinstance(gate_up, Tensor):
        # Nobody's expert spoils nothing.
        gate_up[4 - HELD.start] = float("nan")
    return gate_up, down


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tokens", [0, 3, 17])
def test_formats(form: str, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(tokens)
    gate_up, down = _stacks(form, 96, 64 if form.endswith("awq") or "wide" in form else 48, dtype, device)
    x, shared = (torch.randn(tokens, 96, device=device).to(dtype) for _ in range(2))
    ids, weights = _routes(tokens, device)
    expected = moe_experts_reference(x, ids, weights, gate_up, down, HELD.start, shared)
    out = moe_experts_triton(x, ids, weights, gate_up, down, HELD.start, shared)
    assert out.dtype == dtype
    close(out, expected)


@pytest.mark.parametrize("tokens", [1, 16, 65])
def test_odd_sizes(tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(tokens)
    gate_up, down = _stacks("plain", 72, 20, dtype, device)
    x = torch.randn(tokens, 80, device=device).to(dtype)[:, 3:75]
    ids, weights = _routes(tokens, device)
    expected = moe_experts_reference(x, ids, weights, gate_up, down, HELD.start)
    out = moe_experts_triton(x, ids, weights, gate_up, down, HELD.start)
    assert out.dtype == dtype
    close(out, expected, dtype)


@pytest.mark.parametrize("tokens", [16, 65])
@pytest.mark.parametrize("expert", [0, 4, 5, 63])
def test_one_expert_for_all(expert: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    """The expert is on this rank (4, or 5, the last one) or on another."""
    torch.manual_seed(0)
    gate_up, down = plain((2, 32, 32), dtype, device), plain((2, 32, 16), dtype, device)
    x, weights = torch.randn(tokens, 32, device=device).to(dtype), torch.rand(tokens, 1, device=device)
    ids = torch.full((tokens, 1), expert, device=device)
    expected = moe_experts_reference(x, ids, weights, gate_up, down, 4)
    assert bool(expected.any()) == (expert in (4, 5))
    close(moe_experts_triton(x, ids, weights, gate_up, down, 4), expected, dtype)


@pytest.mark.parametrize("tokens", [2, 40])
def test_large_and_small_values(tokens: int, device: torch.device) -> None:
    torch.manual_seed(0)
    gate_up, down = plain((2, 64, 32), torch.float32, device), plain((2, 32, 32), torch.float32, device)
    x = torch.randn(tokens, 32, device=device) * torch.logspace(-15, 8, tokens, device=device)[:, None]
    ids, weights = torch.tensor([[0, 1]], device=device).repeat(tokens, 1), torch.rand(tokens, 2, device=device)
    expected = moe_experts_reference(x, ids, weights, gate_up, down, 0)
    got = moe_experts_triton(x, ids, weights, gate_up, down, 0)
    difference = (got - expected).double().norm(dim=1) / expected.double().norm(dim=1)
    assert bool((difference < 1e-5).all())


@pytest.mark.parametrize("tokens", [1, 17])
def test_products_of_8_bit_floats(tokens: int, device: torch.device) -> None:
    torch.manual_seed(tokens)
    gate_up, down = (fp8(s, torch.bfloat16, device) for s in ((5, 256, 256), (5, 256, 128)))
    x = on_grid(tokens, 256, device)
    ids, weights = _routes(tokens, device)
    expected = moe_experts_reference(x, ids, weights, gate_up, down, HELD.start).double()
    got = moe_experts_triton(x, ids, weights, gate_up, down, HELD.start).double()
    # The interpreter rounds inner activations, which lie on no grid, worse than a GPU does.
    assert (got - expected).norm() / expected.norm() < (0.01 if device.type == "cuda" else 0.06)
