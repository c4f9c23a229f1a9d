"""Chooses experts by sigmoid scores, with a bias for the choice only, among the best groups (DeepSeek-V3)."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.tuning import Config, config


def route_reference(
    logits: Tensor, bias: Tensor, groups: int, top_groups: int, top_k: int, scale: float, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Expert ids [T, top_k] int64 and their weights [T, top_k] fp32, summing to `scale`.

    logits: [T, E] fp32. bias: [E] fp32. A group's score is the sum of its two best biased scores; experts
    outside the best `top_groups` of `groups` are never chosen. shared: every token also takes an expert E, last of
    its [T, top_k + 1], with weight 1.
    """
    tokens, experts = logits.shape
    scores = logits.sigmoid()
    grouped = (scores + bias).view(tokens, groups, experts // groups)
    group_scores = grouped.topk(min(2, experts // groups), dim=-1).values.sum(-1)
    kept = group_scores.topk(top_groups, dim=-1).indices
    # Not zero, because a biased score may be negative and must still beat a dropped group.
    dropped = torch.full_like(group_scores, float("-inf")).scatter_(1, kept, 0.0)
    ids = (grouped + dropped[..., None]).view(tokens, experts).topk(top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    weights *= scale / (weights.sum(-1, keepdim=True) + 1e-20)
    if shared:
        return F.pad(ids, (0, 1), value=experts), F.pad(weights, (0, 1), value=1.0)
    return ids, weights


@triton.jit
def _ranked(score: tl.tensor, place: tl.tensor) -> tl.tensor:
    """int64 values in the order of scores; of equal scores, the one at the lower place (below 2^31) is larger.

    One reduction so finds both the best score and its place; `_place` extracts the place.
    """
    bits = score.to(tl.int32, bitcast=True)
    # Negative floats have the reverse order as integers.
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit
def _place(ranked: tl.tensor) -> tl.tensor:
    return 0x7FFFFFFF - (ranked & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def choose(
    logits: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    token: tl.tensor,
    tokens: tl.tensor,
    scale: tl.tensor,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    SHARED: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
) -> None:
    """Inside kernels: choose for tokens `token` [T] of logits [T, groups, members], both sizes powers of two."""
    TOKENS: tl.constexpr = logits.shape[0]
    GROUP_BLOCK: tl.constexpr = logits.shape[1]
    SIZE_BLOCK: tl.constexpr = logits.shape[2]
    group, member = tl.arange(0, GROUP_BLOCK), tl.arange(0, SIZE_BLOCK)
    expert = group[:, None] * SIZE + member[None, :]
    inside = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    score = tl.sigmoid(logits)
    biased = tl.where(inside[None], score + tl.load(bias + expert, inside, 0.0)[None], float("-inf"))

    group_score = tl.max(biased, 2)
    if SIZE > 1:
        # Only one of the best is removed, so an equal one counts as the second.
        at = _place(tl.max(_ranked(biased, member[None, None, :]), 2))
        group_score += tl.max(tl.where(member[None, None, :] == at[:, :, None], float("-inf"), biased), 2)
    # Below every score's rank.
    NEVER: tl.constexpr = -(2**63)
    ranks = tl.where((group < GROUPS)[None, :], _ranked(group_score, group[None, :]), NEVER)
    kept = (group < 0)[None, :] & (token >= 0)[:, None]
    for _ in tl.static_range(TOP_GROUPS):
        best = _place(tl.max(tl.where(kept, NEVER, ranks), 1))
        kept |= group[None, :] == best[:, None]

    EVERY: tl.constexpr = GROUP_BLOCK * SIZE_BLOCK
    ranks = tl.where(kept[:, :, None] & inside[None], _ranked(biased, expert[None]), NEVER)
    ranks, score = tl.reshape(ranks, [TOKENS, EVERY]), tl.reshape(score, [TOKENS, EVERY])
    # A place without an expert must not be chosen.
    expert = tl.reshape(tl.where(inside, expert, GROUPS * SIZE), [1, EVERY])
    place = tl.arange(0, TOP_BLOCK)[None, :]
    chosen = tl.zeros([TOKENS, TOP_BLOCK], tl.int64)
    weight = tl.zeros([TOKENS, TOP_BLOCK], tl.float32)
    for k in tl.static_range(TOP_K):
        best = _place(tl.max(ranks, 1))
        taken = expert == best[:, None]
        value = tl.sum(tl.where(taken, score, 0.0), 1)
        ranks = tl.where(taken, NEVER, ranks)
        chosen = tl.where(place == k, best.to(tl.int64)[:, None], chosen)
        weight = tl.where(place == k, value[:, None], weight)
    weight *= (scale / (tl.sum(weight, 1) + 1e-20))[:, None]
    if SHARED:
        chosen = tl.where(place == TOP_K, GROUPS * SIZE, chosen)
        weight = tl.where(place == TOP_K, 1.0, weight)
    CHOICES: tl.constexpr = TOP_K + SHARED
    at = token.to(tl.int64)[:, None] * CHOICES + place
    there = (token < tokens)[:, None] & (place < CHOICES)
    tl.store(ids + at, chosen, there)
    tl.store(weights + at, weight, there)


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
    SHARED: tl.constexpr,
    TOP_BLOCK: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    SIZE_BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0) + tl.arange(0, 1)
    group, member = tl.arange(0, GROUP_BLOCK)[None, :, None], tl.arange(0, SIZE_BLOCK)[None, None, :]
    row = logits + token.to(tl.int64)[:, None, None] * (GROUPS * SIZE)
    found = tl.load(row + group * SIZE + member, (group < GROUPS) & (member < SIZE), 0.0)
    choose(
        found, bias, ids, weights, token, tl.num_programs(0), scale, GROUPS, SIZE, TOP_GROUPS, TOP_K, SHARED, TOP_BLOCK
    )


def choice(experts: int, groups: int, top_groups: int, top_k: int, shared: bool) -> dict[str, int]:
    """Kernels' constants of a choice."""
    size = experts // groups
    return {
        "GROUPS": groups,
        "SIZE": size,
        "TOP_GROUPS": top_groups,
        "TOP_K": top_k,
        "SHARED": int(shared),
        "TOP_BLOCK": triton.next_power_of_2(top_k + shared),
        "GROUP_BLOCK": triton.next_power_of_2(groups),
        "SIZE_BLOCK": triton.next_power_of_2(size),
    }


def chosen(tokens: int, top_k: int, shared: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Empty tensors for ids and weights."""
    shape = tokens, top_k + shared
    return torch.empty(shape, dtype=torch.int64, device=device), torch.empty(shape, dtype=torch.float32, device=device)


def route_triton(
    logits: Tensor,
    bias: Tensor,
    groups: int,
    top_groups: int,
    top_k: int,
    scale: float,
    shared: bool = False,
    tuned: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """One program per token, with all experts in registers; of equal scores the lower expert wins."""
    tokens, experts = logits.shape
    ids, weights = chosen(tokens, top_k, shared, logits.device)
    if tokens:
        launch = tuned or config("route", (tokens, experts), {"num_warps": 1})
        constants = choice(experts, groups, top_groups, top_k, shared)
        _route_kernel[(tokens,)](logits, bias, ids, weights, scale, **constants, **launch)
    return ids, weights


route = dispatch(route_reference, route_triton)
