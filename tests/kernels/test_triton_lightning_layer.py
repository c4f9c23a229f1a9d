"""Tests a linear-attention layer, without its projections, against the reference."""

import pytest
import torch

from kernels import make_rows
from kernels.device import Device
from kernels.lightning.layer import lightning_layer_reference, lightning_layer_triton
from tests.kernels.conftest import close

EPS = 1e-6


def on_card(card: Device) -> None:
    meta = torch.device("meta")
    for tokens, heads in ((1, 32), (16, 32), (1, 8)):
        slots = torch.empty(tokens, dtype=torch.int64, device=meta)
        rows = make_rows(slots, slots, (9,) * tokens, (1,) * tokens)
        projected = torch.empty(tokens, 4, heads, 128, dtype=torch.bfloat16, device=meta)
        weight, angles = projected[0, 0].flatten(), torch.empty(tokens, 32, device=meta)
        state, decay = torch.empty(200, heads, 128, 128, device=meta), torch.empty(heads, device=meta)
        lightning_layer_triton(
            projected, projected[0, :2, :1], weight, angles, angles, heads // 8, EPS, state, decay, rows
        )


# Few rows, more than few, rows of several tokens; heads that share a group and that do not.
@pytest.mark.parametrize(
    ("starts", "counts", "heads", "groups", "size", "half"),
    [
        ((5,), (1,), 4, 2, 16, 4),
        ((0, 7, 3), (1, 1, 1), 4, 4, 20, 3),
        ((2, 0), (1, 1), 6, 1, 33, 16),
        ((4, 1), (1, 1), 3, 2, 16, 8),
        (tuple(range(17)), (1,) * 17, 2, 1, 8, 2),
        ((0, 3), (5, 1), 2, 2, 8, 2),
    ],
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_layer(
    starts: tuple[int, ...],
    counts: tuple[int, ...],
    heads: int,
    groups: int,
    size: int,
    half: int,
    scale: float,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    torch.manual_seed(size)
    tokens = sum(counts)
    positions = torch.tensor([s + i for s, n in zip(starts, counts, strict=True) for i in range(n)], device=device)
    slots = torch.randperm(len(starts) + 2, device=device)[: len(starts)]
    rows = make_rows(slots, positions, starts, counts)
    wide = torch.full((tokens, 4 * heads * size + 3), float("nan"), device=device)
    wide[:, : 4 * heads * size] = torch.randn(tokens, 4 * heads * size, device=device) * scale
    projected = wide.to(dtype)[:, : 4 * heads * size].view(tokens, 4, heads, size)
    qk_weight, out_weight = (torch.randn(*s, device=device).to(dtype) for s in ((2, 1, size), (heads * size,)))
    angles = torch.rand(tokens, half, device=device) * 1000
    decay = -torch.rand(heads, device=device)
    state = torch.randn(len(starts) + 2, heads, size, size, device=device)
    for slot, start in zip(slots.tolist(), starts, strict=True):
        if start == 0:
            state[slot] = float("nan")
    fixed = (qk_weight, out_weight, angles.cos(), angles.sin(), groups, EPS)
    expected_state = state.clone()
    expected = lightning_layer_reference(projected, *fixed, expected_state, decay, rows)
    # The second run finds the counters as it should leave them.
    for _ in range(2):
        got_state = state.clone()
        got = lightning_layer_triton(projected, *fixed, got_state, decay, rows)
        assert got.dtype == dtype
        close(got, expected, torch.bfloat16 if device.type == "cuda" else dtype)
        close(got_state, expected_state, torch.bfloat16 if device.type == "cuda" else torch.float32)
