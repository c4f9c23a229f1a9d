"""A slot's settings, wherever its row stands and whatever is beside it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from wire.protocol import SamplingParams
from workers.rank.grammar import Grammars
from workers.rank.sampler import Sampler
from workers.schedule.step import Admit

VOCAB, SLOTS = 300, 6


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(VOCAB, SLOTS, torch.device("cpu"), Grammars(Path("nowhere"), VOCAB))


def _logits(rows: int) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1))


SETTINGS = [
    SamplingParams(max_tokens=9, seed=11, temperature=0.0),
    SamplingParams(max_tokens=9, seed=12, temperature=0.9),
    SamplingParams(max_tokens=9, seed=-(2**62), temperature=1.3, top_k=3),
    SamplingParams(max_tokens=9, seed=2**62, temperature=1.3, top_p=0.4),
    SamplingParams(max_tokens=9, seed=15, temperature=1.3, min_p=0.3),
]


def test_a_row_gets_what_it_gets_alone(sampler: Sampler) -> None:
    for slot, sampling in enumerate(SETTINGS):
        sampler.admit(Admit(slot, sampling, (), 1))
    order, logits = [3, 0, 4, 2, 1], _logits(5)
    together = sampler(logits, order, [20 + s for s in order]).token_ids
    alone = [sampler(logits[i : i + 1], [s], [20 + s]).token_ids[0] for i, s in enumerate(order)]
    assert together == alone
    assert together[1] == int(logits[1].argmax())
    # Seeds and positions make the noise: another position, another draw.
    draws = {sampler(logits[:1], [1], [at]).token_ids[0] for at in range(40)}
    assert len(draws) > 3


def test_a_slot_taken_again_forgets(sampler: Sampler) -> None:
    logits = _logits(1)
    sampler.admit(Admit(2, SETTINGS[1], (), 1))
    first = [sampler(logits, [2], [at]).token_ids[0] for at in range(20)]
    sampler.admit(Admit(2, SETTINGS[2], (), 1))
    assert {sampler(logits, [2], [at]).token_ids[0] for at in range(60)} <= set(logits[0].topk(3).indices.tolist())
    sampler.admit(Admit(2, SETTINGS[0], (), 1))
    assert {sampler(logits, [2], [at]).token_ids[0] for at in range(20)} == {int(logits.argmax())}
    sampler.admit(Admit(2, SETTINGS[1], (), 1))
    assert [sampler(logits, [2], [at]).token_ids[0] for at in range(20)] == first
