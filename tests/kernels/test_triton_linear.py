"""Tests y = x W^T in every format: the kernel against its reference, and the reference against plain torch."""

from dataclasses import replace

import pytest
import torch

from kernels.device import Device, without_fp8
from kernels.linear.linear import linear_reference, linear_triton
from kernels.linear.quantized import BlockFp8
from tests.kernels.conftest import close
from tests.kernels.matrices import FORMATS, fp8, int4, on_grid


def on_card(card: Device) -> None:
    meta = torch.device("meta")
    for form, tokens in (("fp8", 1), ("fp8", 64), ("fp8", 4096), ("fp8, a scale a row", 64), ("int4", 1), ("awq", 64)):
        if "fp8" in form and without_fp8(card):
            continue
        x = torch.empty(tokens, 4096, dtype=torch.bfloat16, device=meta)
        linear_triton(x, FORMATS[form]((4096, 4096), torch.bfloat16, meta))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tokens", [0, 1, 65])
def test_formats(form: str, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(tokens)
    matrix = FORMATS[form]((40, 192), dtype, device)
    wide = torch.full((tokens, 200), float("nan"), device=device)
    wide[:, :192] = torch.randn(tokens, 192, device=device)
    x = wide.to(dtype)[:, :192]
    out = linear_triton(x, matrix)
    assert out.dtype == dtype
    close(out, linear_reference(x, matrix))


@pytest.mark.parametrize(("tokens", "inputs"), [(1, 512), (3, 672), (17, 512)])
def test_split_inputs(tokens: int, inputs: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(0)
    matrix = int4((24, inputs), dtype, device)
    x = torch.randn(tokens, inputs, device=device).to(dtype)
    tuned = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 128, "SPLIT": 4, "GROUP_M": 2}
    runs = [linear_triton(x, matrix, tuned) for _ in range(2)]
    close(runs[0], linear_reference(x, matrix))
    assert torch.equal(runs[0], runs[1])


def test_too_many_tiles_to_split(device: torch.device) -> None:
    tuned = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "SPLIT": 2, "GROUP_M": 2}
    with pytest.raises(ValueError, match="8192 tiles are too many to split their work"):
        linear_triton(torch.zeros(1, 32, device=device), int4((1 << 17, 32), torch.float32, device), tuned)


def test_8_bit_products_keep_to_their_scales(device: torch.device) -> None:
    tuned = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 64, "SPLIT": 1, "GROUP_M": 2}
    x = torch.zeros(1, 128, dtype=torch.bfloat16, device=device)
    with pytest.raises(ValueError, match="take BLOCK_K 128, not 64"):
        linear_triton(x, fp8((128, 128), torch.bfloat16, device), tuned)


def test_views_with_gaps_are_refused(device: torch.device) -> None:
    matrix = fp8((64, 32), torch.float32, device)
    gaps = fp8((32, 32), torch.float32, device)
    object.__setattr__(gaps, "weight", matrix.weight.view(torch.uint8)[::2].view(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"shape \[32, 32\] is a view with gaps"):
        linear_triton(torch.zeros(1, 32, device=device), gaps)


@pytest.mark.parametrize("rows", [128, 200])
@pytest.mark.parametrize("tokens", [1, 16, 17])
def test_products_of_8_bit_floats(tokens: int, rows: int, device: torch.device) -> None:
    torch.manual_seed(tokens)
    matrix = fp8((rows, 384), torch.bfloat16, device)
    x = on_grid(tokens, 384, device)
    expected = x.double() @ fp8_exact(matrix).T
    reference = linear_reference(x, matrix)
    close(reference, expected, torch.bfloat16)
    out = linear_triton(x, matrix)
    assert out.dtype == torch.bfloat16
    close(out, expected, torch.bfloat16)


def fp8_exact(matrix: BlockFp8) -> torch.Tensor:
    return replace(matrix, dtype=torch.float64).dense()


def test_the_reference_rounds_inputs_in_bf16_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 256)
    for dtype, rounds in ((torch.float32, False), (torch.bfloat16, True)):
        matrix = fp8((128, 256), dtype, x.device)
        seen = x.to(dtype).double()
        if rounds:
            scale = seen.view(2, 2, 128).abs().amax(-1) / 448
            scale = scale.repeat_interleave(128, 1)
            seen = (seen / scale).float().to(torch.float8_e4m3fn).double() * scale
        exact = seen @ fp8_exact(matrix).T
        error = (linear_reference(x.to(dtype), matrix).double() - exact).norm() / exact.norm()
        assert error < (4e-3 if rounds else 1e-6)
        unrounded = x.to(dtype).double() @ fp8_exact(matrix).T
        assert ((exact - unrounded).norm() / exact.norm() > 1e-2) == rounds
