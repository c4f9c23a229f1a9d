"""The experts' feed-forward over the tokens routed to them."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.swiglu import swiglu


def moe_experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, first_expert: int) -> Tensor:
    """Sum over a token's experts of weight * down(swiglu(gate_up(x))), as far as the experts are held here.

    x: [T, D]. ids: [T, k] int64; weights: [T, k] fp32. gate_up: [E, 2I, D] and down: [E, D, I] of experts
    first_expert … first_expert + E - 1; others contribute zero. Returns [T, D] fp32.
    """
    return run_experts(
        x,
        ids,
        weights,
        range(first_expert, first_expert + gate_up.shape[0]),
        lambda rows, expert: F.linear(swiglu(F.linear(rows, gate_up[expert])), down[expert]),
    )


def run_experts(
    x: Tensor, ids: Tensor, weights: Tensor, held: range, expert: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Sort (token, expert) pairs by expert, run `expert(rows, local index)` on each run, combine by weight."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if x.shape[0] == 1:
        # Sorting costs more than it saves for the single token of a lone stream.
        for e, weight in zip(ids[0].tolist(), weights[0].tolist(), strict=True):
            if e in held:
                out.add_(expert(x, e - held.start), alpha=weight)
        return out
    chosen, order = ids.flatten().sort(stable=True)
    edges = torch.arange(held.start, held.stop + 1, device=x.device)
    bounds = torch.searchsorted(chosen, edges).tolist()
    pairs = order[bounds[0] : bounds[-1]]
    if not pairs.numel():
        return out
    tokens = pairs // ids.shape[1]
    sizes = [(e, b - a) for e, (a, b) in enumerate(pairwise(bounds)) if b > a]
    runs = x.index_select(0, tokens).split_with_sizes([n for _, n in sizes])
    results = torch.cat([expert(rows, e) for (e, _), rows in zip(sizes, runs, strict=True)])
    return out.index_add_(0, tokens, results.float() * weights.flatten()[pairs, None])
