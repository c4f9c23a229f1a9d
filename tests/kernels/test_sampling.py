"""Tests the sampling operations: distributions, filters, and independence of the batch."""

import torch

from kernels.sampling.noise import gumbel_noise
from kernels.sampling.sampling import filtered, penalize, sample


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def draw(logits: torch.Tensor, seeds: list[int], positions: list[int], **settings: float) -> list[int]:
    n = logits.shape[0]
    return sample(
        logits,
        temperature=torch.full((n,), settings.get("temperature", 1.0)),
        top_k=torch.full((n,), int(settings.get("top_k", 0))),
        top_p=torch.full((n,), settings.get("top_p", 1.0)),
        min_p=torch.full((n,), settings.get("min_p", 0.0)),
        seeds=torch.tensor(seeds),
        positions=torch.tensor(positions),
    ).tolist()


def test_noise_is_gumbel_and_depends_on_seed_position_and_id_alone() -> None:
    noise = gumbel_noise(torch.tensor([1, 2, 1]), torch.tensor([5, 5, 6]), 40_000)
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.var()) - 1.6449) < 0.05
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(torch.corrcoef(noise[[a, b]])[0, 1])) < 0.02
    assert torch.equal(gumbel_noise(torch.tensor([1]), torch.tensor([6]), 40_000)[0], noise[2])


def test_draws_follow_the_softmax() -> None:
    logits = rows([2.0, 1.0, 0.0, -1.0])
    n = 20_000
    drawn = torch.tensor(draw(logits.expand(n, 4), [9] * n, list(range(n)), temperature=0.7))
    shares = torch.bincount(drawn, minlength=4) / n
    assert torch.allclose(shares, torch.softmax(logits[0] / 0.7, -1), atol=0.012)


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, 300)
    seeds, positions = list(range(16)), [3 * i for i in range(16)]
    together = draw(logits, seeds, positions, top_p=0.9, top_k=40, min_p=0.02)
    alone = [
        draw(logits[i : i + 1], seeds[i : i + 1], positions[i : i + 1], top_p=0.9, top_k=40, min_p=0.02)[0]
        for i in range(16)
    ]
    assert together == alone


def kept(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[list[int]]:
    out = filtered(
        logits,
        torch.full((len(logits),), top_k),
        torch.full((len(logits),), top_p),
        torch.full((len(logits),), min_p),
    )
    return [torch.nonzero(torch.isfinite(row)).flatten().tolist() for row in out]


def test_filters_keep_the_right_tokens() -> None:
    probs = rows([0.5, 0.3, 0.15, 0.05]).log()
    assert kept(probs, top_k=2) == [[0, 1]]
    assert kept(probs, top_k=9) == [[0, 1, 2, 3]]
    assert kept(probs, top_p=0.5) == [[0]]
    assert kept(probs, top_p=0.75) == [[0, 1]]
    assert kept(probs, top_p=1e-6) == [[0]]
    assert kept(probs, min_p=0.25) == [[0, 1, 2]]
    assert kept(probs, min_p=1.0) == [[0]]
    # top_p works on what top_k left: 0.5/0.8 = 0.625 of it is the best token's.
    assert kept(probs, top_k=2, top_p=0.6) == [[0]]
    assert kept(rows([0.0, 0.0, 0.0])) == [[0, 1, 2]]


def test_penalties_follow_their_formulas() -> None:
    logits = rows([2.0, -2.0, 1.0, 0.5], [2.0, -2.0, 1.0, 0.5])
    # Twice in the output; in the prompt alone; nowhere; once. The other slot asks for nothing.
    history = torch.tensor([[9, 9, 9, 9], [5, 1, 0, 3]], dtype=torch.int32)
    settings = torch.tensor([[1.0, 2.0], [0.0, 0.5], [0.0, 0.25]])
    out = penalize(logits, history, torch.tensor([1, 0]), settings)
    assert torch.allclose(out[0], rows([1.0 - 0.5 - 0.5, -4.0, 1.0, 0.25 - 0.5 - 0.25]))
    assert torch.equal(out[1], logits[1])
