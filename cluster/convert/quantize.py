"""Quantizes matrices to the layouts of released checkpoints, and back."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.linear.quantized import BlockFp8, PackedInt4

Scheme = Literal["fp8", "int4"]
FP8_BLOCK = 128
INT4_GROUP = 32
_FP8_MOST = 448.0
_PACK = 8


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor of a quantized module. suffix: what follows the module's name. dtype: as safetensors spells it."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]


def quantized_tensors(scheme: Scheme, shape: tuple[int, int]) -> tuple[QuantizedTensor, ...]:
    """The tensors that a matrix [out, in] becomes, in the order in which `quantize` returns them."""
    rows, cols = shape
    if scheme == "fp8":
        blocks = (-(-rows // FP8_BLOCK), -(-cols // FP8_BLOCK))
        return QuantizedTensor("weight", "F8_E4M3", shape), QuantizedTensor("weight_scale_inv", "F32", blocks)
    return (
        QuantizedTensor("weight_packed", "I32", (rows, cols // _PACK)),
        QuantizedTensor("weight_scale", "BF16", (rows, cols // INT4_GROUP)),
        QuantizedTensor("weight_shape", "I64", (2,)),
    )


def quantize(scheme: Scheme, weight: Tensor) -> tuple[Tensor, ...]:
    """Quantize a matrix [out, in] of fp32 floats to the tensors of `quantized_tensors`."""
    return _fp8(weight) if scheme == "fp8" else _int4(weight)


def dequantize(scheme: Scheme, tensors: tuple[Tensor, ...]) -> Tensor:
    """Compute the [out, in] fp32 weights that a worker uses for what `quantize` returned."""
    if scheme == "int4":
        return PackedInt4(tensors[0], tensors[1], torch.float32).dense()
    rows, cols = (torch.arange(n) // FP8_BLOCK for n in tensors[0].shape)
    return BlockFp8(tensors[0], tensors[1], rows.int(), cols.int(), torch.float32).dense()


def _fp8(weight: Tensor) -> tuple[Tensor, ...]:
    """Each block's largest value becomes the largest 8-bit float."""
    rows, cols = weight.shape
    height, width = -(-rows // FP8_BLOCK), -(-cols // FP8_BLOCK)
    padded = torch.zeros(height * FP8_BLOCK, width * FP8_BLOCK)
    padded[:rows, :cols] = weight
    blocks = padded.view(height, FP8_BLOCK, width, FP8_BLOCK)
    scale = blocks.abs().amax((1, 3)) / _FP8_MOST
    scale[scale == 0] = 1.0
    rounded = (blocks / scale[:, None, :, None]).clamp_(-_FP8_MOST, _FP8_MOST).to(torch.float8_e4m3fn)
    return rounded.view(torch.uint8).view_as(padded)[:rows, :cols].contiguous().view(torch.float8_e4m3fn), scale


def _int4(weight: Tensor) -> tuple[Tensor, ...]:
    """Each group's largest value becomes 7.5 steps: half a step is lost at either end of -8 … 7."""
    rows, cols = weight.shape
    groups = weight.reshape(rows, -1, INT4_GROUP)
    scale = (groups.abs().amax(-1) / 7.5).to(torch.bfloat16)
    scale[scale == 0] = 1.0
    values = (groups / scale.float()[..., None]).round_().clamp_(-8, 7).to(torch.int32) + 8
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    # Nibbles don't overlap, so their sum joins them; the highest one wraps into the sign.
    packed = (values.view(rows, -1, _PACK) << shifts).sum(-1, dtype=torch.int32)
    return packed, scale, torch.tensor([rows, cols])
