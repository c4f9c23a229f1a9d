"""Tests the bitmask kernel against its reference."""

import pytest
import torch

from kernels.device import Device
from kernels.sampling.bitmask import apply_bitmask_reference, apply_bitmask_triton


def on_card(card: Device) -> None:
    mask = torch.empty(8, 157184 // 32, dtype=torch.int32, device="meta")
    apply_bitmask_triton(torch.empty(8, 157184, device="meta"), mask)


@pytest.mark.parametrize(("rows", "vocab"), [(0, 8), (1, 1), (2, 32), (3, 65), (2, 130)])
def test_apply_bitmask(rows: int, vocab: int, device: torch.device) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(rows, vocab, device=device)
    mask = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), device=device).int()
    expected = apply_bitmask_reference(logits, mask)
    # What a masked token's logit holds must not matter.
    hidden = torch.where(expected.isinf(), torch.nan, logits)
    assert torch.equal(apply_bitmask_triton(hidden, mask, {"BLOCK": 32, "num_warps": 1}), expected)
