"""Tests the experts' router in one launch against its reference."""

import pytest
import torch

from kernels.device import Device
from kernels.moe.gate import moe_gate_reference, moe_gate_triton
from tests.kernels.conftest import close

SMALL = {"BLOCK_N": 16, "BLOCK_K": 16, "SPLIT": 3, "num_warps": 4, "num_stages": 2}


def on_card(card: Device) -> None:
    for tokens in (1, 16):
        x, weight = (torch.empty(n, 4096, dtype=torch.bfloat16, device="meta") for n in (tokens, 256))
        moe_gate_triton(x, weight, torch.empty(256, device="meta"), 8, 4, 8, 2.5, True)
        moe_gate_triton(x, weight.float(), torch.empty(256, device="meta"), 8, 4, 8, 2.5)


@pytest.mark.parametrize("tuned", [SMALL, None], ids=["split", "default"])
@pytest.mark.parametrize(("experts", "groups", "top_groups", "top_k"), [(8, 2, 1, 1), (36, 4, 2, 5), (64, 1, 1, 16)])
@pytest.mark.parametrize(("tokens", "shared"), [(0, True), (1, True), (3, False), (16, True), (17, True)])
def test_router(
    tokens: int,
    shared: bool,
    experts: int,
    groups: int,
    top_groups: int,
    top_k: int,
    tuned: dict[str, int] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    torch.manual_seed(experts + tokens)
    wide = torch.full((tokens, 90), float("nan"), device=device)
    wide[:, :83] = torch.randn(tokens, 83, device=device)
    x, weight = wide.to(dtype)[:, :83], torch.randn(experts, 83, device=device).to(dtype)
    bias = torch.randn(experts, device=device) - 1
    expected_ids, expected = moe_gate_reference(x, weight, bias, groups, top_groups, top_k, 2.5, shared)
    # The second run finds the counters as it should leave them.
    for _ in range(2):
        ids, weights = moe_gate_triton(x, weight, bias, groups, top_groups, top_k, 2.5, shared, tuned)
        assert torch.equal(ids, expected_ids)
        close(weights, expected)


def test_chosen_ids_are_experts_even_for_nan_tokens(device: torch.device) -> None:
    x = torch.full((3, 32), float("nan"), device=device)
    x[1] = float("inf")
    ids, _ = moe_gate_triton(x, torch.randn(12, 32, device=device), torch.zeros(12, device=device), 4, 2, 3, 1.0, True)
    assert bool(((ids[:, :3] >= 0) & (ids[:, :3] < 12)).all())
    assert ids[:, 3].tolist() == [12] * 3
