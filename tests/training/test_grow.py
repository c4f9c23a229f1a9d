"""Tests that a grown checkpoint gives its source's logits, and that its new weights can learn."""

from pathlib import Path

import pytest
import torch

from tests.workers.model_rig import GOLDEN
from training.grow import grow
from training.layout import load
from training.model import Latent, Nano, Shape
from training.start import initialise

pytestmark = pytest.mark.process

SMALL = Shape(vocab_size=90, intermediate_size=64, num_hidden_layers=4, moe_intermediate_size=16)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_logits_stay(factor: int) -> None:
    model = Nano(SMALL)
    initialise(model, 1)
    ids = torch.randint(0, 90, (2, 70), generator=torch.Generator().manual_seed(2))
    grown = grow(model, factor)
    assert (grown.shape.num_attention_heads, grown.shape.kv_lora_rank) == (4 * factor, 64 * factor)
    with torch.no_grad():
        before, after = model(ids), grown(ids)
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(grown.ahead(ids, after), model.ahead(ids, before), atol=1e-4, rtol=1e-4)


def test_new_heads_and_latents_learn() -> None:
    model = Nano(SMALL)
    initialise(model, 1)
    grown = grow(model, 2)
    ids = torch.randint(0, 90, (2, 30), generator=torch.Generator().manual_seed(2))
    rate = 0.05
    for _ in range(3):
        torch.autograd.backward(grown.lm_head(grown(ids)).square().mean())
        with torch.no_grad():
            for p in grown.parameters():
                if p.grad is not None:
                    p.sub_(rate * p.grad / (p.grad.norm() + 1e-9))
                    p.grad = None
    latent = next(m for m in grown.modules() if isinstance(m, Latent))
    assert latent.dense.weight.view(128, 8, 32)[:, ::2].abs().sum(dim=(0, 2)).min() > 0
    assert latent.kv_a_proj_with_mqa.weight[64:128].abs().sum(1).min() > 0


def test_a_model_with_a_low_rank_of_queries_is_refused() -> None:
    with pytest.raises(ValueError, match="q_lora_rank"):
        grow(load(Path(GOLDEN / "base")), 2)
