"""The experts' feed-forward over the tokens routed to them."""

from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.swiglu import swiglu

# Up to so many bytes of chosen weights, copying them together costs less than a call for every expert.
_GATHER_BYTES = 2 << 20


class Stack(Protocol):
    """Matrices [E, out, in] that may lie quantized: a tensor is one, `kernels.quantized.Quantized` another."""

    @property
    def shape(self) -> torch.Size:
        """[E, out, in]."""

    def __getitem__(self, which: "int | Tensor", /) -> Tensor:
        """Matrix `which` [out, in], or those of an int64 tensor [P, out, in], in the compute dtype."""


def moe_experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Stack, down: Stack, first_expert: int) -> Tensor:
    """Sum over a token's experts of weight * down(swiglu(gate_up(x))), as far as the experts are held here.

    x: [T, D]. ids: [T, k] int64; weights: [T, k] fp32. gate_up: [E, 2I, D] and down: [E, D, I] of experts
    first_expert … first_expert + E - 1; others contribute zero. Returns [T, D] fp32.
    """
    expert_bytes = (gate_up.shape[1] * gate_up.shape[2] + down.shape[1] * down.shape[2]) * x.element_size()
    if expert_bytes <= _GATHER_BYTES and x.shape[0] * ids.shape[1] <= _GATHER_BYTES // expert_bytes:
        return _gathered(x, ids, weights, gate_up, down, first_expert)
    return _by_expert(x, ids, weights, gate_up, down, first_expert)


def _gathered(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Stack, down: Stack, first: int) -> Tensor:
    """A copy of its expert's weights for each (token, expert) pair, all pairs in one product."""
    count, top_k = ids.shape
    local = ids.flatten() - first
    held = (local >= 0) & (local < gate_up.shape[0])
    # Computing pairs held elsewhere with some expert and weight 0 is cheaper than leaving them out.
    local = local.clamp(0, gate_up.shape[0] - 1)
    chosen = gate_up[local]
    # The vector stands left of the matrix: CPU libraries are several times slower the other way round.
    if count == 1:
        inner = F.linear(x, chosen.flatten(0, 1)).view(top_k, 1, -1)
    else:
        inner = torch.bmm(x.repeat_interleave(top_k, 0)[:, None], chosen.transpose(1, 2))
    results = torch.bmm(swiglu(inner), down[local].transpose(1, 2)).view(count, top_k, -1)
    return torch.bmm((weights * held.view(count, top_k))[:, None], results.float())[:, 0]


def _by_expert(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Stack, down: Stack, first: int) -> Tensor:
    """Pairs sorted by expert, and each expert run over its own."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    chosen, order = ids.flatten().sort(stable=True)
    edges = torch.arange(first, first + gate_up.shape[0] + 1, device=x.device)
    bounds = torch.searchsorted(chosen, edges).tolist()
    pairs = order[bounds[0] : bounds[-1]]
    if not pairs.numel():
        return out
    tokens = pairs // ids.shape[1]
    sizes = [(e, b - a) for e, (a, b) in enumerate(pairwise(bounds)) if b > a]
    runs = x.index_select(0, tokens).split_with_sizes([n for _, n in sizes])
    results = torch.cat(
        [F.linear(swiglu(F.linear(rows, gate_up[e])), down[e]) for (e, _), rows in zip(sizes, runs, strict=True)]
    )
    return out.index_add_(0, tokens, results.float() * weights.flatten()[pairs, None])
