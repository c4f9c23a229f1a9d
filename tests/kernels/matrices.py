"""Makes random matrices in every format that kernels read."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.linear.quantized import Awq, BlockFp8, Matrix, PackedInt4

Shape = tuple[int, ...]


def _integers(shape: Shape, device: torch.device) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device=device)


def plain(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (torch.randn(shape, device=device) * shape[-1] ** -0.5).to(dtype)


def fp8(
    shape: Shape, dtype: torch.dtype, device: torch.device, block: tuple[int, int] = (128, 128), start: int = 0
) -> BlockFp8:
    """A random FP8 matrix with a scale for each `block`: the columns from `start` on of a larger one."""
    *lead, rows, cols = shape
    weight = (torch.randn(shape, device=device) * 100).to(torch.float8_e4m3fn)
    row_block = (torch.arange(rows, device=device) // block[0]).int()
    col_block = ((torch.arange(cols, device=device) + start) // block[1]).int()
    blocks = -(-rows // block[0]), -(-(cols + start) // block[1])
    scale = (torch.rand(*lead, *blocks, device=device) + 0.5) * cols**-0.5 / 100
    return BlockFp8(weight, scale, row_block, col_block, dtype, block[0], 0 if start % block[1] else block[1])


def int4(shape: Shape, dtype: torch.dtype, device: torch.device, group: int = 32) -> PackedInt4:
    *lead, rows, cols = shape
    scale = ((torch.rand(*lead, rows, cols // group, device=device) + 0.5) * cols**-0.5 / 5).bfloat16()
    return PackedInt4(_integers((*lead, rows, cols // 8), device), scale, dtype)


def awq(shape: Shape, dtype: torch.dtype, device: torch.device, group: int = 128) -> Awq:
    *lead, rows, cols = shape
    scale = ((torch.rand(*lead, cols // group, rows, device=device) + 0.5) * cols**-0.5 / 5).half()
    weight, zeros = (_integers((*lead, n, rows // 8), device) for n in (cols, cols // group))
    return Awq(weight, zeros, scale, dtype)


FORMATS: dict[str, Callable[[Shape, torch.dtype, torch.device], Matrix]] = {
    "plain": plain,
    "fp8": fp8,
    "fp8, odd blocks": lambda s, t, d: fp8(s, t, d, (48, 80), 7),
    "fp8, a scale a row": lambda s, t, d: fp8(s, t, d, (1, 1 << 20)),
    "int4": int4,
    "int4, wide groups": lambda s, t, d: int4(s, t, d, 64),
    "int4, odd groups": lambda s, t, d: int4(s, t, d, 24 if s[-1] % 24 == 0 else s[-1]),
    "awq": lambda s, t, d: awq(s, t, d, 64),
    "awq, odd groups": lambda s, t, d: awq(s, t, d, 24 if s[-1] % 24 == 0 else s[-1]),
}


def on_grid(tokens: int, width: int, device: torch.device) -> Tensor:
    """Activations [tokens, width] in bf16 that FP8 quantization does not change, with different scales per token."""
    x = torch.randint(-15, 16, (tokens, width), device=device).float()
    x[:, ::128] = 448.0
    return (x * 2.0 ** torch.randint(-9, -3, (tokens, 1), device=device)).bfloat16()
