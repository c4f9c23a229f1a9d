"""Seeded Gumbel noise: a pure function of (seed, position, token id), so a draw never depends on its batch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

GOLDEN = tl.constexpr(-7046029254386353131)  # 0x9E3779B97F4A7C15 as int64: the increment of SplitMix64
_MIX1 = tl.constexpr(-4658895280553007687)  # 0xBF58476D1CE4E5B9
_MIX2 = tl.constexpr(-7723592293110705685)  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014): int64 in, well mixed int64 out."""
    x = (x ^ _shift(x, 30)) * _MIX1.value
    x = (x ^ _shift(x, 27)) * _MIX2.value
    return x ^ _shift(x, 31)


def uniform(bits: Tensor) -> Tensor:
    """fp32 strictly between 0 and 1 from the upper bits of int64.

    23 of them: with one more, adding a half would round to 1, whose noise is infinite.
    """
    return (_shift(bits, 41).to(torch.float32) + 0.5) * 2.0**-23


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise [R, vocab] fp32. seeds, positions: [R] int64."""
    row = _mix(_mix(seeds * GOLDEN.value + 1) + positions * GOLDEN.value)
    ids = torch.arange(vocab, device=seeds.device, dtype=torch.int64)
    return -torch.log(-torch.log(uniform(_mix(row[:, None] + ids * GOLDEN.value))))


@triton.jit
def mix(x: tl.tensor) -> tl.tensor:
    """Inside kernels: SplitMix64's finalizer on int64."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def row_key(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """Inside kernels: the key of a row's noise, from int64 scalars."""
    return mix(mix(seed * GOLDEN + 1) + position * GOLDEN)


@triton.jit
def gumbel(key: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """Inside kernels: the noise of token ids for a row's key."""
    bits = (mix(key + ids.to(tl.int64) * GOLDEN) >> 41) & 0x7FFFFF
    return -tl.log(-tl.log((bits.to(tl.float32) + 0.5) * 1.1920928955078125e-07))
