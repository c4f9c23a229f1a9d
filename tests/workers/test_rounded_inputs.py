"""Tests that quantizing once in a norm gives the same logits as quantizing before every product."""

from dataclasses import replace

import pytest
import torch

from tests.workers.model_rig import CPU, GOLDEN
from workers.collectives import Solo
from workers.model.batch import Batch
from workers.model.config import LingConfig
from workers.model.linear import Linear, Normed
from workers.model.ling import LingModel, make_caches
from workers.model.synthetic import Synthetic
from workers.model.weights import load_from

# Dimensions of which every 128 inputs share a scale.
WIDE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 128, "moe_intermediate_size": 128}
COUNTS = (3, 1)


def _logits(model: LingModel) -> torch.Tensor:
    total = sum(COUNTS)
    batch = Batch(
        token_ids=torch.arange(total) * 7,
        positions=torch.tensor([p for n in COUNTS for p in range(n)]),
        slots=torch.arange(len(COUNTS)),
        starts=(0,) * len(COUNTS),
        counts=COUNTS,
        page_table=torch.arange(len(COUNTS), dtype=torch.int32)[:, None],
    )
    caches = make_caches(model.config, 1, len(COUNTS), 16, len(COUNTS), CPU, torch.bfloat16)
    with torch.inference_mode():
        return model.logits(model.forward(batch, caches))


def test_norms_round_once_for_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LingConfig.load(GOLDEN / "fp8", WIDE)
    model = LingModel(config, Solo(), CPU, torch.bfloat16)
    load_from(model, Synthetic(config.quantization))
    taken = []
    of_rounded = Linear.of_rounded
    monkeypatch.setattr(Linear, "of_rounded", lambda self, x: taken.append(x) or of_rounded(self, x))
    once = _logits(model)
    assert once.isfinite().all()
    assert len(taken) > config.num_hidden_layers

    call = Linear.__call__
    monkeypatch.setattr(
        Linear, "__call__", lambda self, x: call(self, replace(x, rounded=None) if isinstance(x, Normed) else x)
    )
    taken.clear()
    assert torch.equal(_logits(model), once)
    # What remains follows an activation, not a norm.
    assert 0 < len(taken) <= config.num_hidden_layers
