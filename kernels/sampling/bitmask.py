"""Masks logits by one bit per token, as grammars give them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.tuning import Config, config


def apply_bitmask_reference(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits [R, V] with -inf where a token's bit is 0.

    mask: [R, ceil(V / 32)] int32 on the same device; bit v % 32 of word v // 32 is token v's.
    """
    shifts = torch.arange(32, device=mask.device, dtype=torch.int32)
    bits = (mask[:, :, None] >> shifts) & 1
    return logits.masked_fill(bits.flatten(1)[:, : logits.shape[-1]] == 0, float("-inf"))


@triton.jit
def _apply_bitmask_kernel(
    logits: tl.tensor,
    mask: tl.tensor,
    out: tl.tensor,
    vocab: tl.tensor,
    stride: tl.tensor,
    mask_stride: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab
    word = tl.load(mask + row * mask_stride + ids // 32, inside, 0)
    allowed = ((word >> (ids % 32)) & 1) != 0
    x = tl.load(logits + row * stride + ids, inside & allowed, float("-inf"))
    tl.store(out + row * vocab + ids, x, inside)


def apply_bitmask_triton(logits: Tensor, mask: Tensor, tuned: Config | None = None) -> Tensor:
    """One program per row and block of ids; masked logits are not read."""
    rows, vocab = logits.shape
    out = torch.empty(rows, vocab, dtype=logits.dtype, device=logits.device)
    if rows:
        launch = tuned or config("apply_bitmask", (rows, vocab), {"BLOCK": 1024, "num_warps": 4})
        grid = (rows, triton.cdiv(vocab, launch["BLOCK"]))
        _apply_bitmask_kernel[grid](logits, mask, out, vocab, logits.stride(0), mask.stride(0), **launch)
    return out


apply_bitmask = dispatch(apply_bitmask_reference, apply_bitmask_triton)
