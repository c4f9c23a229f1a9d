"""Choice of experts: sigmoid scores, a bias for selection only, limited to the best groups (DeepSeek-V3)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.tuning import Config, config


def route_reference(
    logits: Tensor, bias: Tensor, groups: int, top_groups: int, top_k: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Expert ids [T, top_k] int64 and their weights [T, top_k] fp32, summing to `scale`.

    logits: [T, E] fp32. bias: [E] fp32. A group's score is the sum of its two best biased scores; experts
    outside the best `top_groups` of `groups` are never chosen.
    """
    tokens, experts = logits.shape
    scores = logits.sigmoid()
    grouped = (scores + bias).view(tokens, groups, experts // groups)
    group_scores = grouped.topk(min(2, experts // groups), dim=-1).values.sum(-1)
    kept = group_scores.topk(top_groups, dim=-1).indices
    # Not zero: a biased score may be negative, and a dropped group must lose to it.
    dropped = torch.full_like(group_scores, float("-inf")).scatter_(1, kept, 0.0)
    ids = (grouped + dropped[..., None]).view(tokens, experts).topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    return ids, weights * (scale / (weights.sum(-1, keepdim=True) + 1e-20))


@triton.jit
def _route_kernel(
    logits: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUP_BLOCK), tl.arange(0, SIZE_BLOCK)
    expert = group[:, None] * SIZE + member[None, :]
    inside = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    score = tl.sigmoid(tl.load(logits + token * GROUPS * SIZE + expert, inside, 0.0))
    biased = tl.where(inside, score + tl.load(bias + expert, inside, 0.0), float("-inf"))

    group_score = tl.max(biased, 1)
    if SIZE > 1:
        # One of the best alone is taken out, so an equal one counts as the second.
        at = tl.min(tl.where(biased == group_score[:, None], member[None, :], SIZE_BLOCK), 1)
        group_score += tl.max(tl.where(member[None, :] == at[:, None], float("-inf"), biased), 1)
    group_score = tl.where(group < GROUPS, group_score, float("-inf"))
    kept = group < 0
    for _ in tl.static_range(TOP_GROUPS):
        left = tl.where(kept, float("-inf"), group_score)
        best = tl.min(tl.where((left == tl.max(left, 0)) & (group < GROUPS) & ~kept, group, GROUP_BLOCK), 0)
        kept |= group == best
    biased = tl.where(kept[:, None] & inside, biased, float("-inf"))

    place = tl.arange(0, TOP_BLOCK)
    chosen = tl.zeros([TOP_BLOCK], tl.int64)
    weight = tl.zeros([TOP_BLOCK], tl.float32)
    for k in tl.static_range(TOP_K):
        # NaN equals nothing: the bound keeps the id one of an expert.
        equal = tl.where(biased == tl.max(biased), expert, GROUPS * SIZE - 1)
        best = tl.min(equal)
        taken = (expert == best) & inside
        value = tl.sum(tl.where(taken, score, 0.0))
        biased = tl.where(taken, float("-inf"), biased)
        chosen = tl.where(place == k, best.to(tl.int64), chosen)
        weight = tl.where(place == k, value, weight)
    weight *= scale / (tl.sum(weight) + 1e-20)
    at = token * TOP_K + place
    tl.store(ids + at, chosen, place < TOP_K)
    tl.store(weights + at, weight, place < TOP_K)


def route_triton(
    logits: Tensor,
    bias: Tensor,
    groups: int,
    top_groups: int,
    top_k: int,
    scale: float,
    tuned: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """One program a token, all experts in registers; of equal scores the lower expert wins."""
    tokens, experts = logits.shape
    ids = torch.empty(tokens, top_k, dtype=torch.int64, device=logits.device)
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    if tokens:
        size = experts // groups
        _route_kernel[(tokens,)](
            logits,
            bias,
            ids,
            weights,
            scale,
            GROUPS=groups,
            SIZE=size,
            TOP_GROUPS=top_groups,
            TOP_K=top_k,
            GROUP_BLOCK=triton.next_power_of_2(groups),
            SIZE_BLOCK=triton.next_power_of_2(size),
            TOP_BLOCK=triton.next_power_of_2(top_k),
            **(tuned or config("route", (tokens, experts), {"num_warps": 1})),
        )
    return ids, weights


route = dispatch(route_reference, route_triton)
