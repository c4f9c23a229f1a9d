"""Rotary position embedding (Su et al. 2021) in the two layouts of the model."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.norm import unit_rms
from kernels.pdl import LAUNCH, after_previous
from kernels.tuning import Config, config


def qk_norm_rope_reference(qk: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """RMSNorm per head, then rope over the first 2R dims in half-split pairs (i, i + R).

    qk: [T, 2, H, d], queries then keys, as they lie in a wider row of queries, keys and values. weight: [2, 1, d].
    cos, sin: [T, R] fp32. Returns [T, 2, H, d] fp32, rounded to qk's dtype between norm and rope as RMSNorm does.
    """
    normed = (unit_rms(qk.float(), eps).to(qk.dtype) * weight).float()
    half = cos.shape[-1]
    cos, sin = cos[:, None, None], sin[:, None, None]
    first, second, rest = normed.split_with_sizes((half, half, qk.shape[-1] - 2 * half), -1)
    return torch.cat(
        (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin), rest), -1
    )


def rope_interleaved_reference(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rope over all of x's last dimension in pairs (2i, 2i + 1).

    x: [T, H, 2R]. cos, sin: [T, R] fp32. Returns `out`, where given, or a tensor of x's dtype; the arithmetic is fp32.
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    turned = pairs * torch.complex(cos, sin)[:, None]
    result = torch.view_as_real(turned).flatten(-2).to(x.dtype)
    return result if out is None else out.copy_(result)


@triton.jit
def _normed(x: tl.tensor, weight: tl.tensor, factor: tl.tensor) -> tl.tensor:
    unit = (x.to(tl.float32) * factor[:, None]).to(x.dtype)
    return (unit.to(tl.float32) * weight.to(tl.float32)[None, :]).to(x.dtype).to(tl.float32)


@triton.jit
def normed_and_turned(
    row: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    held: tl.tensor,
    size: tl.tensor,
    half: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Inside kernels: a token's heads [R, BLOCK] fp32, from where each begins, row [R, 1], if it is `held` [R, 1].

    weight: of `size` channels. cos, sin: the token's.
    """
    channel = tl.arange(0, BLOCK)
    inside = channel < size
    x = tl.load(row + channel[None, :], held & inside[None, :], 0.0)
    wide = x.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(wide * wide, 1) / size + eps)
    mine = _normed(x, tl.load(weight + channel, inside, 0.0), factor)

    # The other element of the pair is read again from the cache, so that lanes need not exchange it.
    turned = channel < 2 * half
    first = channel < half
    other = tl.where(first, channel + half, channel - half)
    pair = tl.load(row + other[None, :], held & turned[None, :], 0.0)
    theirs = _normed(pair, tl.load(weight + other, turned, 0.0), factor)
    angle = tl.where(first, channel, other)
    c, s = tl.load(cos + angle, turned, 1.0), tl.load(sin + angle, turned, 0.0)
    return mine * c[None, :] + theirs * tl.where(first, -s, s)[None, :]


@triton.jit
def _qk_norm_rope_kernel(
    qk: tl.tensor,
    weight: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    heads: tl.tensor,
    size: tl.tensor,
    half: tl.tensor,
    token_stride: tl.tensor,
    part_stride: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)[:, None]
    row = qk + token * token_stride + part * part_stride + head * size
    angles = token * half
    result = normed_and_turned(
        row, weight + part * size, cos + angles, sin + angles, head < heads, size, half, eps, BLOCK
    )
    channel = tl.arange(0, BLOCK)[None, :]
    to = out + ((token * 2 + part) * heads + head) * size + channel
    tl.store(to, result, (head < heads) & (channel < size))


@triton.jit
def turned_pairs(
    x: tl.tensor, pair: tl.tensor, cos: tl.tensor, sin: tl.tensor, inside: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Inside kernels: both turned components of pairs at x [..., R], cos and sin alike."""
    first = tl.load(x + 2 * pair, inside, 0.0).to(tl.float32)
    second = tl.load(x + 2 * pair + 1, inside, 0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _rope_interleaved_kernel(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    out: tl.tensor,
    heads: tl.tensor,
    half: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (pair < half)
    c = tl.load(cos + token * half + pair, pair < half, 1.0)
    s = tl.load(sin + token * half + pair, pair < half, 0.0)
    first, second = turned_pairs(x + token * token_stride + head * head_stride, pair, c, s, inside)
    to = out + token * out_token + head * out_head + 2 * pair
    tl.store(to, first.to(out.dtype.element_ty), inside)
    tl.store(to + 1, second.to(out.dtype.element_ty), inside)


def qk_norm_rope_triton(
    qk: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, tuned: Config | None = None
) -> Tensor:
    """One program per token, part and block of heads. Heads must be adjacent; tokens and parts need not be."""
    tokens, _, heads, size = qk.shape
    out = torch.empty(qk.shape, dtype=torch.float32, device=qk.device)
    if tokens:
        launch = tuned or config("qk_norm_rope", (tokens, heads, size), {"HEADS": 4, "num_warps": 4})
        _qk_norm_rope_kernel[(tokens, 2, triton.cdiv(heads, launch["HEADS"]))](
            qk,
            weight,
            cos,
            sin,
            out,
            heads,
            size,
            cos.shape[-1],
            qk.stride(0),
            qk.stride(1),
            eps,
            BLOCK=triton.next_power_of_2(size),
            **launch,
        )
    return out


def rope_interleaved_triton(
    x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None, tuned: Config | None = None
) -> Tensor:
    """One program per token and block of heads; tokens and heads need not be adjacent."""
    tokens, heads, size = x.shape
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if tokens:
        launch = tuned or config("rope_interleaved", (tokens, heads, size), {"HEADS": 8, "num_warps": 2})
        _rope_interleaved_kernel[(tokens, triton.cdiv(heads, launch["HEADS"]))](
            x,
            cos,
            sin,
            out,
            heads,
            size // 2,
            x.stride(0),
            x.stride(1),
            out.stride(0),
            out.stride(1),
            BLOCK=triton.next_power_of_2(size // 2),
            **launch,
            **LAUNCH,
        )
    return out


qk_norm_rope = dispatch(qk_norm_rope_reference, qk_norm_rope_triton)
rope_interleaved = dispatch(rope_interleaved_reference, rope_interleaved_triton)
