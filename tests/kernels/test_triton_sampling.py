"""Tests the sampling kernels against their references."""

import pytest
import torch

from kernels.device import Device
from kernels.sampling.noise import gumbel_noise, uniform
from kernels.sampling.sampling import penalize_reference, penalize_triton, sample_reference, sample_triton
from tests.kernels.conftest import close

# Several chunks, and several rounds over them, at vocabularies small enough for the interpreter.
SMALL = {"SIZE": 16, "CHUNKS": 2, "WIDTH": 4, "num_warps": 1}


def on_card(card: Device) -> None:
    for rows in (1, 128):
        logits, values = torch.empty(rows, 157184, device="meta"), torch.empty(rows, device="meta")
        integers = torch.empty(rows, dtype=torch.int64, device="meta")
        sample_triton(logits, values, integers, values, values, integers, integers)
        history = torch.empty(64, 157184, dtype=torch.int32, device="meta")
        penalize_triton(logits, history, integers, torch.empty(3, 64, device="meta"))


def _pair(
    logits: torch.Tensor,
    temperature: float | list[float] = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> tuple[list[int], list[int]]:
    """The tokens of the kernel and of the reference."""
    rows, device = logits.shape[0], logits.device
    heat = torch.tensor(temperature, device=device).expand(rows).contiguous()
    settings = (
        heat,
        torch.full((rows,), top_k, device=device),
        torch.full((rows,), top_p, device=device),
        torch.full((rows,), min_p, device=device),
        torch.arange(rows, device=device) * 977 + seed,
        torch.arange(rows, device=device) * 5 - 3,
    )
    return sample_triton(logits, *settings, SMALL).tolist(), sample_reference(logits, *settings).tolist()


@pytest.mark.parametrize("vocab", [1, 100])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3, "top_k": 1},
        {"top_k": 3},
        {"top_k": 40},
        {"top_p": 0.9},
        {"top_p": 1e-6},
        {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.7},
        {"top_k": 50, "top_p": 0.5, "min_p": 0.05},
        {"temperature": 3.0, "top_k": 1000, "top_p": 0.99, "min_p": 0.01},
    ],
    ids=str,
)
def test_the_reference_token(vocab: int, settings: dict[str, float], device: torch.device) -> None:
    torch.manual_seed(vocab)
    wide = torch.full((3, vocab + 3), float("nan"), device=device)
    wide[:, :vocab] = torch.randn(3, vocab, device=device) * 2
    got, expected = _pair(wide[:, :vocab], **settings)  # type: ignore[arg-type]
    assert got == expected


@pytest.mark.parametrize("settings", [{}, {"top_k": 7, "top_p": 0.6}, {"top_p": 0.3}, {"min_p": 0.9}], ids=str)
def test_equal_logits_keep_the_lower_ids(settings: dict[str, float], device: torch.device) -> None:
    logits = torch.randint(0, 3, (2, 70), device=device).float()
    got, expected = _pair(logits, **settings)  # type: ignore[arg-type]
    assert got == expected


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.8}, {"top_k": 4, "top_p": 0.8}], ids=str)
def test_masked_and_extreme_logits(settings: dict[str, float], device: torch.device) -> None:
    torch.manual_seed(0)
    logits = torch.full((4, 70), float("-inf"), device=device)
    logits[0, 33] = -5.0
    logits[1, 20:60:9] = torch.randn(5, device=device)
    logits[2] = torch.randn(70, device=device) * 1e30
    logits[3, :64] = 0.0
    got, expected = _pair(logits, **settings)  # type: ignore[arg-type]
    assert got == expected


def test_no_temperature_takes_the_best(device: torch.device) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 90, device=device)
    got, expected = _pair(logits, temperature=[0.0, 1.0, 0.0], top_k=5, top_p=0.9)
    assert got == expected
    assert [got[0], got[2]] == logits.argmax(-1)[[0, 2]].tolist()


@pytest.mark.parametrize("settings", [{}, {"top_k": 3, "top_p": 0.5}], ids=str)
def test_sampled_tokens_are_in_the_vocabulary_even_for_nan_logits(
    settings: dict[str, float], device: torch.device
) -> None:
    logits = torch.full((3, 50), float("nan"), device=device)
    logits[1] = float("-inf")
    logits[2] = float("inf")
    got, _ = _pair(logits, **settings)  # type: ignore[arg-type]
    assert all(0 <= token < 50 for token in got)


def test_no_rows(device: torch.device) -> None:
    assert _pair(torch.empty(0, 9, device=device)) == ([], [])


def test_noise_is_finite_at_both_ends() -> None:
    ends = uniform(torch.tensor([0, -1]))
    assert bool(((ends > 0) & (ends < 1)).all())
    assert bool(gumbel_noise(torch.arange(50), torch.arange(50), 2000).isfinite().all())


@pytest.mark.parametrize(("rows", "vocab"), [(0, 5), (1, 1), (3, 65)])
def test_penalize(rows: int, vocab: int, device: torch.device) -> None:
    torch.manual_seed(0)
    logits, slots = torch.randn(rows, vocab, device=device), torch.randperm(5, device=device)[:rows]
    counts = torch.randint(0, 3, (5, vocab), device=device)
    seen = (counts > 0) | (torch.rand(5, vocab, device=device) < 0.3)
    history, settings = (2 * counts + seen).int(), torch.rand(3, 5, device=device) + 0.5
    got = penalize_triton(logits, history, slots, settings, {"BLOCK": 32, "num_warps": 1})
    close(got, penalize_reference(logits, history, slots, settings))
