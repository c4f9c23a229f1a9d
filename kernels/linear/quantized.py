"""Matrices that are quantized in memory and become floats where they are used.

Each class holds a matrix [out, in] or a stack [E, out, in]; `dense()` gives all of it as floats, `stack[e]` one
matrix and `stack[tensor]` several.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.linear.quantize import GROUP, dequantize_fp8, quantize_fp8_reference

# Which nibble of an AWQ int32, lowest first, holds each of its eight output columns (AutoAWQ's GEMM layout).
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_BITS = 4
_MASK = 15


class Quantized(ABC):
    """The common interface of a tensor of floats and of quantized matrices. dtype: the compute dtype."""

    dtype: torch.dtype

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """[(E,) out, in]."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The whole matrix or stack in the compute dtype, of `shape`."""

    @abstractmethod
    def __getitem__(self, which: int | Tensor) -> Tensor:
        """Matrix `which` [out, in] of a stack, or those of an int64 tensor [P, out, in], in the compute dtype."""


@dataclass(frozen=True, slots=True)
class BlockFp8(Quantized):
    """8-bit floats with one scale a block of any size; weight = q * scale.

    weight: [(E,) out, in] float8. scale: [(E,) block rows, block columns] fp32. row_block: [out] int32, the block
    row of each row; col_block: [in] alike. They need not start at a block's edge, nor blocks be of one size.
    height, width: rows and inputs of a block, where all but the last are whole and of that size, else 0.
    """

    weight: Tensor
    scale: Tensor
    row_block: Tensor
    col_block: Tensor
    dtype: torch.dtype
    height: int = 0
    width: int = 0

    @property
    def rounds_inputs(self) -> bool:
        """Whether its inputs are rounded to 8-bit floats too, with a scale for each block's inputs.

        They are in bf16, if its scales span as many inputs as a scale of the activations. In fp32 they never are.
        """
        return self.dtype == torch.bfloat16 and self.width == GROUP and self.shape[-1] % GROUP == 0

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    def dense(self) -> Tensor:
        scale = self.scale.to(self.dtype).index_select(-2, self.row_block)
        weight = self.weight.to(self.dtype)
        if self.scale.shape[-1] == 1:
            return weight.mul_(scale)
        return weight.mul_(scale.index_select(-1, self.col_block))

    def __getitem__(self, which: int | Tensor) -> Tensor:
        # Indexed as bytes, because torch can't index 8-bit floats on every device.
        weight = self.weight.view(torch.uint8)[which].view(self.weight.dtype)
        return replace(self, weight=weight, scale=self.scale[which]).dense()


@dataclass(frozen=True, slots=True)
class PackedInt4(Quantized):
    """Symmetric 4-bit integers, eight an int32 along the input, lowest bits first, stored + 8.

    packed: [(E,) out, in / 8] int32. scale: [(E,) out, in / group]; weight = (q - 8) * scale.
    """

    packed: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.packed.shape[:-1], self.packed.shape[-1] * 8))

    def dense(self) -> Tensor:
        values = unpack_nibbles(self.packed, range(8)).to(self.dtype).sub_(8)
        grouped = values.view(*self.scale.shape, -1)
        return grouped.mul_(self.scale.to(self.dtype)[..., None]).flatten(-2)

    def __getitem__(self, which: int | Tensor) -> Tensor:
        return replace(self, packed=self.packed[which], scale=self.scale[which]).dense()


@dataclass(frozen=True, slots=True)
class Awq(Quantized):
    """Asymmetric 4-bit integers in AutoAWQ's GEMM layout, eight output columns an int32 in `AWQ_ORDER`.

    weight: [(E,) in, out / 8] int32. zeros: [(E,) in / group, out / 8] int32. scale: [(E,) in / group, out];
    weight = (q - zero) * scale, transposed.
    """

    weight: Tensor
    zeros: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        *lead, inputs, packed = self.weight.shape
        return torch.Size((*lead, packed * 8, inputs))

    def dense(self) -> Tensor:
        *lead, groups, outputs = self.scale.shape
        values = unpack_nibbles(self.weight, AWQ_ORDER).to(self.dtype).view(*lead, groups, -1, outputs)
        zeros = unpack_nibbles(self.zeros, AWQ_ORDER).to(self.dtype)
        scaled = values.sub_(zeros.unsqueeze(-2)).mul_(self.scale.to(self.dtype).unsqueeze(-2))
        return scaled.flatten(-3, -2).transpose(-1, -2)

    def __getitem__(self, which: int | Tensor) -> Tensor:
        return replace(self, weight=self.weight[which], zeros=self.zeros[which], scale=self.scale[which]).dense()


def unpack_nibbles(packed: Tensor, order: "range | tuple[int, ...]") -> Tensor:
    """[…, n] int32 to [..., 8 n] int32 of 0 … 15: of each int, the nibbles at `order`, 0 being the lowest."""
    shifts = torch.tensor([_BITS * i for i in order], dtype=torch.int32, device=packed.device)
    return ((packed[..., None] >> shifts) & _MASK).flatten(-2)


Matrix = Tensor | Quantized


def dense(matrix: Matrix) -> Tensor:
    """[(E,) out, in] in the compute dtype."""
    return matrix if isinstance(matrix, Tensor) else matrix.dense()


def rounds_inputs(matrix: Matrix) -> bool:
    """Whether a matrix's inputs are rounded to 8-bit floats."""
    return isinstance(matrix, BlockFp8) and matrix.rounds_inputs


def operands(x: Tensor, matrix: Matrix, scale: Tensor | None = None) -> tuple[Tensor, Matrix]:
    """The operands of the product of x [T, in] and a matrix or stack; they are fp32 if inputs are rounded too.

    scale: x is rounded already, and this `quantize_fp8`'s scale of it.
    """
    if not (isinstance(matrix, BlockFp8) and matrix.rounds_inputs):
        if scale is not None:
            raise ValueError("x comes as 8-bit floats, but this matrix multiplies inputs that are not rounded")
        return x, matrix
    rounded = quantize_fp8_reference(x) if scale is None else (x, scale)
    return dequantize_fp8(*rounded), replace(matrix, dtype=torch.float32)
