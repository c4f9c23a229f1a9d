"""Choice of experts: sigmoid scores, a bias for selection only, limited to the best groups (DeepSeek-V3)."""

import torch
from torch import Tensor


def route(
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
