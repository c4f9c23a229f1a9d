"""Tests the kernel that chooses experts against its reference."""

import pytest
import torch

from kernels.device import Device
from kernels.moe.route import route_reference, route_triton
from tests.kernels.conftest import close

SHAPES = [(8, 2, 1, 1), (12, 4, 2, 5), (16, 1, 1, 16), (6, 6, 3, 2), (256, 8, 4, 8)]


def on_card(card: Device) -> None:
    route_triton(torch.empty(128, 256, device="meta"), torch.empty(256, device="meta"), 8, 4, 8, 2.5)


@pytest.mark.parametrize(("experts", "groups", "top_groups", "top_k"), SHAPES)
@pytest.mark.parametrize(("tokens", "shared"), [(0, False), (1, True), (5, False), (5, True)])
def test_route(
    tokens: int, shared: bool, experts: int, groups: int, top_groups: int, top_k: int, device: torch.device
) -> None:
    torch.manual_seed(experts + tokens)
    logits = torch.randn(tokens, experts, device=device) * 3
    # Below zero for many: dropped groups must lose to negative scores too.
    bias = torch.randn(experts, device=device) - 1
    ids, weights = route_triton(logits, bias, groups, top_groups, top_k, 2.5, shared)
    expected_ids, expected = route_reference(logits, bias, groups, top_groups, top_k, 2.5, shared)
    assert ids.shape == (tokens, top_k + shared)
    assert torch.equal(ids, expected_ids)
    close(weights, expected)


def test_equal_scores_choose_the_lowest_ids_and_none_twice(device: torch.device) -> None:
    ids, weights = route_triton(torch.zeros(2, 12, device=device), torch.zeros(12, device=device), 4, 2, 6, 1.0)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    close(weights, torch.full((2, 6), 1 / 6, device=device))


def test_chosen_ids_are_experts_even_for_nan_logits(device: torch.device) -> None:
    logits = torch.full((3, 12), float("nan"), device=device)
    logits[1] = float("inf")
    logits[2] = float("-inf")
    ids, _ = route_triton(logits, torch.zeros(12, device=device), 4, 2, 3, 1.0)
    assert bool(((ids >= 0) & (ids < 12)).all())
