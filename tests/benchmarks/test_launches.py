"""Tests how many kernels a decode step launches, so that the number does not grow unnoticed."""

import pytest

from benchmarks.decode import MODELS, QUANTIZATION
from benchmarks.launches import step_launches
from workers.model.config import LingConfig

LAYERS, EXPERTS = 8, 16


def _parts(weights: str, tp: int, batch: int) -> dict[str, int]:
    """The launches by part of the released model's first group of layers, with fewer experts."""
    smaller = {"num_hidden_layers": LAYERS, "num_experts": EXPERTS, "quantization_config": QUANTIZATION[weights]}
    config = LingConfig.load(MODELS / "ling-2.6-flash", smaller)
    return {name: seen.total() for name, seen in step_launches(config, tp, batch).items()}


# A rank of several computes its share of the shared expert by itself, and so does one whose experts alone are INT4.
@pytest.mark.parametrize(
    ("weights", "tp", "experts"), [("fp8", 1, 3), ("bf16", 1, 3), ("fp8", 4, 6), ("int4", 1, 6)], ids=str
)
def test_a_step_of_one_token(weights: str, tp: int, experts: int) -> None:
    found = _parts(weights, tp, 1)
    assert found["linear attention"] == 3 * (LAYERS - 1)
    assert found["latent attention"] == 9
    assert found["experts, shared expert and router"] == experts * (LAYERS - 1)
    assert found["dense MLP"] == 3
    assert found["norms"] == 2 * LAYERS + 1
    # A rank of several sets embeddings aside that are another's.
    assert found["embedding and angles"] == (15 if tp == 1 else 21)
    inside = sum(n for name, n in found.items() if name not in ("all", "head", "sampling"))
    assert found["all"] == inside


def test_a_step_of_many_tokens() -> None:
    found = _parts("fp8", 1, 32)
    assert found["linear attention"] > 3 * (LAYERS - 1)
    assert found["experts, shared expert and router"] > 3 * (LAYERS - 1)
