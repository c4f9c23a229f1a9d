"""Tests the choice and the computation of experts against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import moe_experts, route


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def _route_one(logits: list[float], bias: list[float], groups: int, top_groups: int, top_k: int) -> list[int]:
    """The expert ids of one token, the best first, by sorting."""
    choice = [1 / (1 + torch.exp(-torch.tensor(x)).item()) + b for x, b in zip(logits, bias, strict=True)]
    size = len(choice) // groups
    scores = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    kept = sorted(range(groups), key=lambda g: -scores[g])[:top_groups]
    allowed = [e for e in range(len(choice)) if e // size in kept]
    return sorted(allowed, key=lambda e: -choice[e])[:top_k]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(8, 4, 2, 3), (32, 8, 4, 8), (16, 1, 1, 4), (4, 4, 2, 2)]),
    st.sampled_from([0.0, -5.0]),
)
def test_route(seed: int, sizes: tuple[int, int, int, int], shift: float) -> None:
    experts, groups, top_groups, top_k = sizes
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, experts, generator=draw)
    # All biased scores below zero: a dropped group must still lose to them.
    bias = torch.randn(experts, generator=draw) + shift
    ids, weights = route(logits, bias, groups, top_groups, top_k, 2.5)
    assert ids.dtype == torch.int64
    assert weights.dtype == torch.float32
    for t in range(6):
        assert sorted(ids[t].tolist()) == sorted(
            _route_one(logits[t].tolist(), bias.tolist(), groups, top_groups, top_k)
        )
    unbiased = logits.double().sigmoid().gather(1, ids)
    torch.testing.assert_close(weights.double(), 2.5 * unbiased / unbiased.sum(-1, keepdim=True), rtol=1e-5, atol=0)


def test_route_survives_scores_of_zero() -> None:
    _, weights = route(torch.full((1, 8), -200.0), torch.zeros(8), 4, 2, 3, 2.5)
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("gathered", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 64])
@pytest.mark.parametrize("held", [range(8), range(2, 4), range(6, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moe_experts(
    tokens: int, held: range, dtype: torch.dtype, gathered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.moe.experts._GATHER_BYTES", 1 << 30 if gathered else 0)
    width, inner, top_k = 12, 6, 3
    x = torch.randn(tokens, width).to(dtype)
    gate_up, down = torch.randn(8, 2 * inner, width).to(dtype), torch.randn(8, width, inner).to(dtype)
    # Experts 0 and 7 are never chosen; the others are, unevenly.
    ids = torch.stack([torch.tensor([1, 3, 5, 2, 4, 6])[torch.randperm(6)[:top_k]] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k)
    expected = torch.zeros(tokens, width, dtype=torch.float64)
    for t in range(tokens):
        for slot, e in enumerate(ids[t].tolist()):
            if e in held:
                gate, up = (gate_up[e].double() @ x[t].double()).split(inner)
                expected[t] += weights[t, slot] * (down[e].double() @ (gate * torch.sigmoid(gate) * up))
    part = slice(held.start, held.stop)
    out = moe_experts(x, ids, weights, gate_up[part], down[part], held.start)
    assert out.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gather_bytes", [0, 1 << 20])
def test_a_rank_without_chosen_experts_adds_nothing(gather_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.moe.experts._GATHER_BYTES", gather_bytes)
    x, ids = torch.randn(2, 4), torch.tensor([[0, 1], [1, 0]])
    out = moe_experts(x, ids, torch.ones(2, 2), torch.randn(2, 6, 4), torch.randn(2, 4, 3), 2)
    assert not out.any()
