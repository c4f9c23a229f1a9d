"""Tests norms, ropes and activation functions against their formulas in fp64."""

import math

import pytest
import torch

from kernels import add_rms_norm, group_rms_norm_gate, qk_norm_rope, rms_norm, rope_interleaved, swiglu

EPS = 1e-6


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def _normed(x: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm(scale: float) -> None:
    x, weight = torch.randn(7, 48) * scale, torch.randn(48)
    torch.testing.assert_close(rms_norm(x, weight, EPS).double(), _normed(x) * weight, rtol=1e-5, atol=1e-6)


def test_rms_norm_casts_back_before_the_weight() -> None:
    x, weight = torch.randn(5, 32).bfloat16(), torch.randn(32).bfloat16()
    expected = _normed(x).bfloat16() * weight
    assert torch.equal(rms_norm(x, weight, EPS), expected)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not rms_norm(torch.zeros(2, 8), torch.ones(8), EPS).any()


def test_add_rms_norm_returns_the_sum_too() -> None:
    x, residual, weight = torch.randn(3, 16), torch.randn(3, 16), torch.randn(16)
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, weight, EPS))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_counts_groups_and_gates_after(groups: int) -> None:
    x, gate, weight = torch.randn(5, 24), torch.randn(5, 24), torch.randn(24)
    expected = _normed(x.view(5, groups, -1)).view(5, 24) * weight / (1 + torch.exp(-gate.double()))
    got = group_rms_norm_gate(x, gate, weight, groups, EPS)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def _angles(positions: list[int], pairs: int) -> tuple[torch.Tensor, torch.Tensor, list[list[float]]]:
    angles = [[p * 100.0 ** (-i / pairs) for i in range(pairs)] for p in positions]
    table = torch.tensor(angles, dtype=torch.float64)
    return table.cos().float(), table.sin().float(), angles


@pytest.mark.parametrize("pairs", [2, 8])
def test_qk_norm_rope_turns_half_split_pairs_after_the_norm(pairs: int) -> None:
    cos, sin, angles = _angles([0, 3, 17], pairs)
    qk, weight = torch.randn(3, 2, 4, 16), torch.randn(2, 1, 16)
    got = qk_norm_rope(qk, weight, cos, sin, EPS)
    expected = _normed(qk) * weight
    for t, row in enumerate(angles):
        for i, angle in enumerate(row):
            a, b = expected[t, :, :, i].clone(), expected[t, :, :, i + pairs].clone()
            expected[t, :, :, i] = a * math.cos(angle) - b * math.sin(angle)
            expected[t, :, :, i + pairs] = b * math.cos(angle) + a * math.sin(angle)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_interleaved_rope_turns_neighbours() -> None:
    cos, sin, angles = _angles([1, 250], 4)
    x = torch.randn(2, 3, 8)
    expected = x.double()
    for t, row in enumerate(angles):
        for i, angle in enumerate(row):
            a, b = expected[t, :, 2 * i].clone(), expected[t, :, 2 * i + 1].clone()
            expected[t, :, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
            expected[t, :, 2 * i + 1] = b * math.cos(angle) + a * math.sin(angle)
    torch.testing.assert_close(rope_interleaved(x, cos, sin).double(), expected, rtol=1e-5, atol=1e-5)
    assert rope_interleaved(x.bfloat16(), cos, sin).dtype == torch.bfloat16


def test_swiglu() -> None:
    x = torch.randn(3, 10)
    gate, up = x[:, :5].double(), x[:, 5:].double()
    torch.testing.assert_close(swiglu(x).double(), gate / (1 + torch.exp(-gate)) * up, rtol=1e-5, atol=1e-6)
