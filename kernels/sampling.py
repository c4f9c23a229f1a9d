"""Choosing tokens: penalties, filters and seeded noise over a batch's logits.

A row's token depends on its own logits, settings, seed and position alone, never on the rows beside it.
"""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the increment of SplitMix64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014): int64 in, well mixed int64 out."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise [R, vocab] fp32, a pure function of (seed, position, token id).

    seeds, positions: [R] int64.
    """
    row = _mix(_mix(seeds * _GOLDEN + 1) + positions * _GOLDEN)
    ids = torch.arange(vocab, device=seeds.device, dtype=torch.int64)
    bits = _shift(_mix(row[:, None] + ids * _GOLDEN), 40)
    uniform = (bits.to(torch.float32) + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform))


def penalize(
    logits: Tensor,
    seen: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Logits [R, V] after penalties.

    seen: [R, V] bool, ids in prompt or output: positive logits divided, negative multiplied by repetition [R].
    counts: [R, V] ids in the output: minus presence where > 0, minus frequency x count.
    """
    factor = torch.where(logits > 0, 1.0 / repetition[:, None], repetition[:, None])
    logits = torch.where(seen, logits * factor, logits)
    return logits - presence[:, None] * (counts > 0) - frequency[:, None] * counts


def filtered(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Logits [R, V], already divided by temperature, with what the filters drop at -inf.

    top_k [R] int64 (0: off), then top_p [R] over what is left, then min_p [R] relative to the best.
    At least the best token stays.
    """
    vocab = logits.shape[-1]
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device)
    keep_k = torch.where(top_k > 0, top_k, vocab)[:, None]
    ordered = ordered.masked_fill(rank >= keep_k, float("-inf"))
    probs = torch.softmax(ordered, dim=-1)
    before = torch.cumsum(probs, dim=-1) - probs
    # A row with top_p 1 keeps all it has, whatever rounding does to the running sum.
    drop = (before >= top_p[:, None]) & (top_p < 1.0)[:, None]
    drop |= probs < min_p[:, None] * probs[:, :1]
    drop[:, 0] = False
    ordered = ordered.masked_fill(drop, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Token ids [R] int64 from logits [R, V] fp32; temperature [R] > 0 (greedy rows take `argmax`).

    Gumbel-max: the argmax of logits/temperature + noise is a draw from their softmax.
    """
    scaled = logits / temperature[:, None]
    if bool(((top_k > 0) | (top_p < 1.0) | (min_p > 0.0)).any()):
        scaled = filtered(scaled, top_k, top_p, min_p)
    return torch.argmax(scaled + gumbel_noise(seeds, positions, logits.shape[-1]), dim=-1)
