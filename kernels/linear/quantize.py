"""Rounds activations to 8-bit floats with a scale per token and 128 channels, alone or fused with other operations."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.norm import add_rms_norm_reference, normed_row, row_warps
from kernels.pdl import LAUNCH, after_previous
from kernels.swiglu import gated, swiglu_reference
from kernels.tuning import Config, config

# q and scale of `quantize_fp8`.
Rounded = tuple[Tensor, Tensor]
GROUP = 128
FP8 = torch.float8_e4m3fn
_MOST = tl.constexpr(448.0)
# The smallest scale, so that a run of zeros has no scale of 0 and no quotient NaN.
_LEAST = tl.constexpr(1e-10)
# Triton's interpreter loses the carry when it rounds to 8-bit floats; it converts values of the format correctly.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def quantize_fp8_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """(q [T, D] float8_e4m3fn, scale [T, ceil(D / 128)] fp32) with x ≈ q * scale, for x [T, D].

    A run's scale maps its largest magnitude to 448, the format's largest.
    """
    tokens, size = x.shape
    runs = -(-size // GROUP)
    padded = torch.nn.functional.pad(x.float(), (0, runs * GROUP - size)).view(tokens, runs, GROUP)
    scale = padded.abs().amax(-1).clamp(min=_LEAST.value) / _MOST.value
    q = (padded / scale[..., None]).clamp(-_MOST.value, _MOST.value).to(FP8)
    return q.flatten(1)[:, :size].contiguous(), scale


def dequantize_fp8(q: Tensor, scale: Tensor) -> Tensor:
    """q * scale, [T, D] fp32."""
    return q.float() * scale.repeat_interleave(GROUP, 1)[:, : q.shape[1]]


def add_rms_norm_quantized_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(normed, total) of `add_rms_norm`, then `quantize_fp8` of normed: (normed, total, q, scale)."""
    out, total = add_rms_norm_reference(x, residual, weight, eps)
    return out, total, *quantize_fp8_reference(out)


def swiglu_quantized_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_fp8` of `swiglu(x)`: (q [T, I], scale [T, ceil(I / 128)]) for x [T, 2 I]."""
    return quantize_fp8_reference(swiglu_reference(x))


@triton.jit
def _on_grid(x: tl.tensor) -> tl.tensor:
    """x fp32, at most 448 in magnitude, rounded to the nearest value of the format, ties to even."""
    power = tl.maximum(x.to(tl.int32, bitcast=True) & 0x7F800000, (127 - 6) << 23)
    # Adding 2^20 times x's power of two leaves room for three bits below it.
    shift = (power + (20 << 23)).to(tl.float32, bitcast=True)
    return tl.where(x < 0, (x - shift) + shift, (x + shift) - shift)


@triton.jit
def round_tile(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Inside kernels: round x [R, 128] fp32 to (8-bit floats, scale [R])."""
    scale = tl.div_rn(tl.maximum(tl.max(tl.abs(x), 1), _LEAST), _MOST)
    q = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))
    q = tl.minimum(tl.maximum(q, -_MOST), _MOST)
    if _INTERPRETED:
        q = _on_grid(q)
    return q.to(tl.float8e4nv), scale


@triton.jit
def _store_row(
    x: tl.tensor, q: tl.tensor, scale: tl.tensor, token: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Quantize row `token`, x [BLOCK] with zeros from `size` on."""
    run = tl.arange(0, BLOCK // 128)
    channel = run[:, None] * 128 + tl.arange(0, 128)[None, :]
    value, factor = round_tile(tl.reshape(x, [BLOCK // 128, 128]))
    tl.store(q + token * size + channel, value, channel < size)
    tl.store(scale + token * tl.cdiv(size, 128) + run, factor, run * 128 < size)


@triton.jit
def _quantize_kernel(
    x: tl.tensor, q: tl.tensor, scale: tl.tensor, size: tl.tensor, x_stride: tl.tensor, BLOCK: tl.constexpr
) -> None:
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    row = tl.load(x + token * x_stride + channel, channel < size, 0.0).to(tl.float32)
    _store_row(row, q, scale, token, size, BLOCK)


@triton.jit
def _add_rms_norm_quantized_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    q: tl.tensor,
    scale: tl.tensor,
    size: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside, at = channel < size, token * size + channel
    row = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(residual + at, inside, 0.0).to(tl.float32)
    row = row.to(total.dtype.element_ty)
    tl.store(total + at, row, inside)
    row = normed_row(row, tl.load(weight + channel, inside, 0.0), size, eps)
    tl.store(out + at, row, inside)
    _store_row(row.to(tl.float32), q, scale, token, size, BLOCK)


@triton.jit
def _swiglu_quantized_kernel(x: tl.tensor, q: tl.tensor, scale: tl.tensor, size: tl.tensor, RUNS: tl.constexpr) -> None:
    after_previous()
    token = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1) * RUNS + tl.arange(0, RUNS)
    channel = run[:, None] * 128 + tl.arange(0, 128)[None, :]
    inside, at = channel < size, token * 2 * size + channel
    gate, up = tl.load(x + at, inside, 0.0), tl.load(x + at + size, inside, 0.0)
    value, factor = round_tile(gated(gate, up).to(tl.float32))
    tl.store(q + token * size + channel, value, inside)
    tl.store(scale + token * tl.cdiv(size, 128) + run, factor, run * 128 < size)


def _outputs(tokens: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    q = torch.empty(tokens, size, dtype=FP8, device=device)
    return q, torch.empty(tokens, -(-size // GROUP), dtype=torch.float32, device=device)


def _block(size: int) -> int:
    return max(GROUP, 1 << (size - 1).bit_length())


def quantize_fp8_triton(x: Tensor, tuned: Config | None = None) -> tuple[Tensor, Tensor]:
    """One program per row; x's rows need not be adjacent."""
    tokens, size = x.shape
    q, scale = _outputs(tokens, size, x.device)
    if tokens:
        launch = tuned or config("quantize_fp8", (tokens, size), {"num_warps": row_warps(size)})
        _quantize_kernel[(tokens,)](x, q, scale, size, x.stride(0), BLOCK=_block(size), **launch)
    return q, scale


def add_rms_norm_quantized_triton(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, tuned: Config | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One program per row."""
    tokens, size = x.shape
    out, total = torch.empty_like(x), torch.empty_like(x)
    q, scale = _outputs(tokens, size, x.device)
    if tokens:
        launch = tuned or config("add_rms_norm_quantized", (tokens, size), {"num_warps": row_warps(size)})
        block = _block(size)
        _add_rms_norm_quantized_kernel[(tokens,)](
            x, residual, weight, out, total, q, scale, size, eps, BLOCK=block, **launch, **LAUNCH
        )
    return out, total, q, scale


def swiglu_quantized_triton(x: Tensor, tuned: Config | None = None) -> tuple[Tensor, Tensor]:
    """One program per token and a few runs of channels."""
    tokens, size = x.shape[0], x.shape[1] // 2
    q, scale = _outputs(tokens, size, x.device)
    if tokens:
        launch = tuned or config("swiglu_quantized", (tokens, size), {"RUNS": 4, "num_warps": 2})
        grid = (tokens, -(-size // (GROUP * launch["RUNS"])))
        _swiglu_quantized_kernel[grid](x, q, scale, size, **launch, **LAUNCH)
    return q, scale


quantize_fp8 = dispatch(quantize_fp8_reference, quantize_fp8_triton)
add_rms_norm_quantized = dispatch(add_rms_norm_quantized_reference, add_rms_norm_quantized_triton)
swiglu_quantized = dispatch(swiglu_quantized_reference, swiglu_quantized_triton)
