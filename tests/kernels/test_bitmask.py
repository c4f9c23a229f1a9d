"""Tests bit masks over logits."""

import numpy as np
import pytest
import torch

from kernels.sampling.bitmask import apply_bitmask


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000, 1280])
def test_only_tokens_with_a_bit_keep_their_logits(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    allowed = rng.random((5, vocab)) < np.array([0.0, 0.01, 0.5, 0.99, 1.0])[:, None]
    bits = np.zeros((5, -(-vocab // 32) * 32), dtype=np.uint8)
    bits[:, :vocab] = allowed
    words = np.packbits(bits, axis=1, bitorder="little").view("<i4")
    logits = torch.from_numpy(rng.normal(size=(5, vocab)).astype(np.float32))
    before = logits.clone()
    masked = apply_bitmask(logits, torch.from_numpy(words))
    assert torch.equal(masked, torch.where(torch.from_numpy(allowed), before, float("-inf")))
    assert torch.equal(logits, before)
