"""Tests that warming up compiles all kernels that requests launch."""

import pytest
import torch

from kernels.device import H200
from kernels.linear.fp32 import _default as fp32_launch
from kernels.linear.linear import _default as linear_launch
from kernels.linear.tiles import FP8_BOTH
from kernels.moe.experts import _default as experts_launch
from tests.workers.model_rig import GOLDEN
from workers.collectives import Solo
from workers.model.config import LingConfig
from workers.model.ling import LingModel, make_caches
from workers.model.weights import load_weights
from workers.rank.warm import sizes, warm

MOST = 8192


@pytest.mark.parametrize("experts", [64, 256])
def test_prompts_of_any_size_launch_only_warmed_kernels(experts: int) -> None:
    def launches(tokens: int) -> set[str]:
        return {
            f"qkv {linear_launch(H200, FP8_BOTH.value, 2, tokens, 16384, 4096)}",
            f"out {linear_launch(H200, FP8_BOTH.value, 2, tokens, 4096, 4096)}",
            f"router {fp32_launch(H200, tokens, 256, 2)}",
            f"experts {experts_launch(H200, 2, FP8_BOTH.value, tokens, tokens * 8 / 256)}",
        }

    warmed = set().union(*(launches(n) for n in sizes(MOST)))
    for tokens in range(2, MOST + 1):
        assert launches(tokens) <= warmed, tokens


def test_a_warmed_model_is_as_before() -> None:
    config = LingConfig.load(GOLDEN / "base", {})
    model = LingModel(config, Solo(), torch.device("cpu"), torch.float32)
    load_weights(model, GOLDEN / "base")
    caches = make_caches(config, 1, 8, 16, 3, torch.device("cpu"), torch.float32)
    table = torch.zeros(3, 8, dtype=torch.int32)
    table[2] = torch.arange(8)
    warm(model, caches, table, 100)
    assert not caches.state[:, :2].any()
    assert caches.state[:, 2].any()
    assert caches.latent.isfinite().all()
