"""The common part of the matrix kernels: a matrix's layout in memory, and the loop over its inputs, in every format.

Weights become floats in registers, tile by tile; no copy of them is ever made.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.linear.quantize import GROUP as ROUNDED
from kernels.linear.quantize import round_tile
from kernels.linear.quantized import Awq, BlockFp8, Matrix, PackedInt4
from kernels.tuning import Config

PLAIN = tl.constexpr(0)
FP8 = tl.constexpr(1)  # 8-bit weights become floats
FP8_BOTH = tl.constexpr(2)  # products of 8-bit floats, both sides' scales applied every 128 inputs
INT4 = tl.constexpr(3)
AWQ = tl.constexpr(4)
_ANY_RUN = 1 << 30


@dataclass(frozen=True, slots=True)
class MatrixLayout:
    """A matrix or stack as kernels take it: its tensors, and the elements between matrices of a stack.

    format: one of the above. group, height: inputs and rows that share a scale; 0 if they differ from scale to scale.
    """

    format: int
    weight: Tensor
    scale: Tensor
    zeros: Tensor
    row_block: Tensor
    col_block: Tensor
    scale_columns: int
    group: int
    height: int = 0

    def arguments(self) -> dict[str, Any]:
        """The kernels' parameters that describe it."""
        return {
            "weight": self.weight,
            "scale": self.scale,
            "zeros": self.zeros,
            "row_block": self.row_block,
            "col_block": self.col_block,
            "scale_columns": self.scale_columns,
            "weight_stride": self.weight.shape[-1] * self.weight.shape[-2],
            "scale_stride": self.scale.shape[-1] * self.scale.shape[-2],
            "zeros_stride": self.zeros.shape[-1] * self.zeros.shape[-2],
            "FORMAT": self.format,
            "GROUP": self.group,
            "HEIGHT": self.height,
        }


def layout(matrix: Matrix) -> MatrixLayout:
    """The layout of a matrix [out, in] or stack [E, out, in]. ValueError if it is not contiguous."""
    match matrix:
        case Tensor():
            found = MatrixLayout(PLAIN.value, matrix, matrix, matrix, matrix, matrix, 0, 0)
        case BlockFp8(weight, scale, row_block, col_block):
            kind = FP8_BOTH if matrix.rounds_inputs else FP8
            group = matrix.width if scale.shape[-1] > 1 else _ANY_RUN
            columns = scale.shape[-1]
            found = MatrixLayout(kind.value, weight, scale, scale, row_block, col_block, columns, group, matrix.height)
        case PackedInt4(packed, scale):
            columns = scale.shape[-1]
            found = MatrixLayout(INT4.value, packed, scale, scale, scale, scale, columns, matrix.shape[-1] // columns)
        case Awq(weight, zeros, scale):
            group = matrix.shape[-1] // scale.shape[-2]
            found = MatrixLayout(AWQ.value, weight, scale, zeros, scale, scale, scale.shape[-1], group)
        case _:
            raise TypeError(f"no kernel reads {type(matrix).__name__}")
    if not all(t.is_contiguous() for t in (found.weight, found.scale, found.zeros)):
        raise ValueError(f"a matrix of shape {list(matrix.shape)} is a view with gaps; copy it with .contiguous()")
    return found


def check_blocks(form: MatrixLayout, chosen: Config) -> None:
    """ValueError for a configuration that would apply wrong scales to products."""
    if form.format == FP8_BOTH.value and chosen["BLOCK_K"] != ROUNDED:
        raise ValueError(f"products of 8-bit floats take BLOCK_K {ROUNDED}, not {chosen['BLOCK_K']}")


def tile_bytes(form: int, itemsize: int, rows: int, columns: int, deep: int) -> tuple[int, int]:
    """Shared memory of a product's loop: of each stage, and beside them.

    A stage holds `rows` of x and `columns` of the matrix as they are stored, over `deep` inputs; weights that become
    floats in registers take room once more before they are multiplied.
    """
    both = form == FP8_BOTH.value
    x = rows * deep * (1 if both else itemsize)
    bits = {PLAIN.value: 8 * itemsize, FP8.value: 8, FP8_BOTH.value: 8}.get(form, 4)
    made = 0 if both or form == PLAIN.value else columns * deep * itemsize
    return x + columns * deep * bits // 8, made


@triton.jit
def repeat8(
    packed: tl.tensor,
) -> tl.tensor:
    """[R, C] to [R, 8 C], each element eight times."""
    twice = tl.interleave(packed, packed)
    four = tl.interleave(twice, twice)
    return tl.interleave(four, four)


@triton.jit
def int4_tile(
    weight: tl.tensor,
    scale: tl.tensor,
    columns: tl.tensor,
    n: tl.tensor,
    start: tl.tensor,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Rows n of a `PackedInt4` at inputs start …, [BLOCK_N, BLOCK_K]."""
    BLOCK_N: tl.constexpr = n.shape[0]
    k = tl.arange(0, BLOCK_K)
    word = start // 8 + tl.arange(0, BLOCK_K // 8)
    # Told this, the compiler drops a mask that is true everywhere.
    inside = (word < K // 8) | (K % BLOCK_K == 0)
    packed = tl.load(weight + n[:, None] * (K // 8) + word[None, :], mask=inside[None, :], other=0)
    value = (((repeat8(packed) >> ((k % 8) * 4)[None, :]) & 15) - 8).to(tl.float32)
    if GROUP % BLOCK_K == 0 or BLOCK_K % GROUP == 0:
        GROUPS: tl.constexpr = BLOCK_K // GROUP if BLOCK_K > GROUP else 1
        group = start // GROUP + tl.arange(0, GROUPS)
        factor = tl.load(scale + n[:, None] * columns + group[None, :], mask=group[None, :] < columns, other=0.0)
        factor = factor.to(DTYPE).to(tl.float32)[:, :, None]
        value = tl.reshape(tl.reshape(value, [BLOCK_N, GROUPS, BLOCK_K // GROUPS]) * factor, [BLOCK_N, BLOCK_K])
    else:
        group = (start + k) // GROUP
        factor = tl.load(scale + n[:, None] * columns + group[None, :], mask=group[None, :] < columns, other=0.0)
        value = value * factor.to(DTYPE).to(tl.float32)
    return value.to(DTYPE)


@triton.jit
def awq_tile(
    weight: tl.tensor,
    scale: tl.tensor,
    zeros: tl.tensor,
    words: tl.tensor,
    start: tl.tensor,
    N: tl.tensor,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """The 8 rows of each of `words` of an `Awq` at inputs start …, [BLOCK_K, 8 words]."""
    BLOCK_N: tl.constexpr = words.shape[0] * 8
    k = start + tl.arange(0, BLOCK_K)
    at = tl.arange(0, BLOCK_N) % 8
    shift = ((at // 2 + at % 2 * 4) * 4)[None, :]
    n = tl.reshape(tl.broadcast_to(words[:, None] * 8, [BLOCK_N // 8, 8]), [BLOCK_N]) + at
    packed = tl.load(
        weight + k[:, None] * (N // 8) + words[None, :], mask=((k < K) | (K % BLOCK_K == 0))[:, None], other=0
    )
    value = ((repeat8(packed) >> shift) & 15).to(tl.float32)
    if GROUP % BLOCK_K == 0 or BLOCK_K % GROUP == 0:
        GROUPS: tl.constexpr = BLOCK_K // GROUP if BLOCK_K > GROUP else 1
        group = start // GROUP + tl.arange(0, GROUPS)
        inside = (group < K // GROUP)[:, None]
        zero = tl.load(zeros + group[:, None] * (N // 8) + words[None, :], mask=inside, other=0)
        zero = ((repeat8(zero) >> shift) & 15).to(tl.float32)[:, None, :]
        factor = tl.load(scale + group[:, None] * N + n[None, :], mask=inside, other=0.0)
        factor = factor.to(DTYPE).to(tl.float32)[:, None, :]
        value = (tl.reshape(value, [GROUPS, BLOCK_K // GROUPS, BLOCK_N]) - zero) * factor
        value = tl.reshape(value, [BLOCK_K, BLOCK_N])
    else:
        group = k // GROUP
        inside = (group < K // GROUP)[:, None]
        zero = tl.load(zeros + group[:, None] * (N // 8) + words[None, :], mask=inside, other=0)
        factor = tl.load(scale + group[:, None] * N + n[None, :], mask=inside, other=0.0)
        value = (value - ((repeat8(zero) >> shift) & 15).to(tl.float32)) * factor.to(DTYPE).to(tl.float32)
    return value.to(DTYPE)


@triton.jit
def fp8_tile(
    weight: tl.tensor,
    scale: tl.tensor,
    col_block: tl.tensor,
    n: tl.tensor,
    scale_at: tl.tensor,
    start: tl.tensor,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Rows n of a `BlockFp8` at inputs start …, [BLOCK_K, BLOCK_N]. scale_at: where each row's scales begin."""
    k = start + tl.arange(0, BLOCK_K)
    inside = (k < K) | (K % BLOCK_K == 0)
    value = tl.load(weight + n[None, :] * K + k[:, None], mask=inside[:, None], other=0.0).to(tl.float32)
    if GROUP > 0 and GROUP % BLOCK_K == 0:
        factor = tl.load(scale + scale_at + tl.load(col_block + start))[None, :]
    else:
        column = tl.load(col_block + k, mask=inside, other=0)
        factor = tl.load(scale + scale_at[None, :] + column[:, None])
    return (value * factor.to(DTYPE).to(tl.float32)).to(DTYPE)


@triton.jit
def product(
    x: tl.tensor,
    x_scale: tl.tensor,
    rows: tl.tensor,
    x_stride: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    zeros: tl.tensor,
    row_block: tl.tensor,
    col_block: tl.tensor,
    scale_columns: tl.tensor,
    n: tl.tensor,
    words: tl.tensor,
    even_block: tl.tensor,
    odd_block: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    N: tl.tensor,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    ALIKE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROUND: tl.constexpr,
) -> tl.tensor:
    """Rows of x [., K] times rows of a matrix [N, K] over inputs begin … end - 1: [rows, n] fp32.

    rows: [BLOCK_M] rows of x. n: [BLOCK_N] rows of the matrix; words: [BLOCK_N / 8], n's run over 8 where the
    format packs rows. x_scale: [., K / 128] if x is rounded already; with ROUND, x is rounded here. begin is a
    multiple of BLOCK_K. even_block, odd_block: with ALIKE, the block row of all even and of all odd places of n.
    """
    acc = tl.zeros([rows.shape[0], n.shape[0]], dtype=tl.float32)
    x_at = x + rows.to(tl.int64)[:, None] * x_stride
    if FORMAT == FP8_BOTH or FORMAT == FP8:  # noqa: PLR1714, SIM109
        scale_at = tl.load(row_block + n) * scale_columns
    for start in range(begin, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k < K) | (K % BLOCK_K == 0)
        value = tl.load(x_at + k[None, :], mask=inside[None, :], other=0.0)
        if FORMAT == FP8_BOTH:
            if ROUND:
                value, x_factor = round_tile(value.to(tl.float32))
            else:
                x_factor = tl.load(x_scale + rows.to(tl.int64) * scale_columns + start // BLOCK_K)
            tile = tl.load(weight + n[None, :] * K + k[:, None])
            if ALIKE:
                even = tl.load(scale + even_block * scale_columns + start // BLOCK_K)
                odd = tl.load(scale + odd_block * scale_columns + start // BLOCK_K)
                factor = tl.where(tl.arange(0, n.shape[0]) % 2 == 0, even, odd)
            else:
                factor = tl.load(scale + scale_at + start // BLOCK_K)
            acc += tl.dot(value, tile) * (x_factor[:, None] * factor[None, :])
        else:
            DTYPE: tl.constexpr = x.dtype.element_ty
            if FORMAT == PLAIN:
                tile = tl.load(weight + n[None, :] * K + k[:, None], mask=inside[:, None], other=0.0)
            elif FORMAT == FP8:
                tile = fp8_tile(weight, scale, col_block, n, scale_at, start, K, GROUP, BLOCK_K, DTYPE)
            elif FORMAT == INT4:
                tile = tl.trans(int4_tile(weight, scale, scale_columns, n, start, K, GROUP, BLOCK_K, DTYPE))
            else:
                tile = awq_tile(weight, scale, zeros, words, start, N, K, GROUP, BLOCK_K, DTYPE)
            acc = tl.dot(value, tile, acc, input_precision="ieee")
    return acc
