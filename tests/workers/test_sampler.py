"""Tests that a slot's settings apply wherever its row is in the batch and whatever else runs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wire.protocol import SamplingParams
from workers.rank.grammar import Grammars
from workers.rank.sampler import Run, Sampler
from workers.schedule.step import Admit

VOCAB, SLOTS = 300, 6


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(VOCAB, SLOTS, torch.device("cpu"), Grammars(Path("nowhere"), VOCAB))


def _logits(rows: int) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1))


def _tokens(sampler: Sampler, logits: Tensor, slots: list[int], positions: list[int]) -> list[int]:
    """The tokens of rows without drafts."""
    runs = [Run(slot, position) for slot, position in zip(slots, positions, strict=True)]
    return [token for (token,) in sampler.read(sampler.draw(logits, runs)).tokens]


SETTINGS = [
    SamplingParams(max_tokens=9, seed=11, temperature=0.0),
    SamplingParams(max_tokens=9, seed=12, temperature=0.9),
    SamplingParams(max_tokens=9, seed=-(2**62), temperature=1.3, top_k=3),
    SamplingParams(max_tokens=9, seed=2**62, temperature=1.3, top_p=0.4),
    SamplingParams(max_tokens=9, seed=15, temperature=1.3, min_p=0.3),
]


def test_a_row_s_token_does_not_depend_on_the_batch(sampler: Sampler) -> None:
    for slot, sampling in enumerate(SETTINGS):
        sampler.admit(Admit(slot, sampling, (), 1))
    order, logits = [3, 0, 4, 2, 1], _logits(5)
    together = _tokens(sampler, logits, order, [20 + s for s in order])
    alone = [_tokens(sampler, logits[i : i + 1], [s], [20 + s])[0] for i, s in enumerate(order)]
    assert together == alone
    assert together[1] == int(logits[1].argmax())
    # Seeds and positions make the noise: another position, another draw.
    draws = {_tokens(sampler, logits[:1], [1], [at])[0] for at in range(40)}
    assert len(draws) > 3


def test_tokens_after_drafts_are_drawn_from_the_model_s_distribution(sampler: Sampler) -> None:
    sampler.admit(Admit(0, SamplingParams(max_tokens=9, seed=5, temperature=1.0), (), 1))
    logits = _logits(2)
    ids = [int(t) for t in logits.topk(8, dim=-1).indices.flatten()]
    drafts, drawn = ids[0], (Counter[int](), Counter[int]())
    for position in range(4000):
        drawing = sampler.draw(logits, [Run(0, 2 * position, 1)], torch.tensor([[drafts]]))
        (tokens,) = sampler.read(drawing).tokens
        assert (len(tokens) == 2) == (tokens[0] == drafts)
        for count, token in zip(drawn, tokens, strict=False):
            count[token] += 1
    for count, row in zip(drawn, logits, strict=True):
        # Pearson's chi-squared over the likeliest ids and all others together: 8 degrees of freedom, p = 1e-4 at 31.8.
        total, probabilities = sum(count.values()), row.softmax(-1).tolist()
        top = row.topk(8).indices.tolist()
        expected = [total * probabilities[i] for i in top]
        seen = [count[i] for i in top]
        expected.append(total - sum(expected))
        seen.append(total - sum(seen))
        assert sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True)) < 31.8
    # As often as the model gives it, the draft stands: rejection sampling's own rate.
    chance = float(logits[0].softmax(-1)[drafts])
    assert abs(sum(drawn[1].values()) / 4000 - chance) < 4 * (chance * (1 - chance) / 4000) ** 0.5


def test_a_slot_taken_again_forgets(sampler: Sampler) -> None:
    logits = _logits(1)
    sampler.admit(Admit(2, SETTINGS[1], (), 1))
    first = [_tokens(sampler, logits, [2], [at])[0] for at in range(20)]
    sampler.admit(Admit(2, SETTINGS[2], (), 1))
    assert {_tokens(sampler, logits, [2], [at])[0] for at in range(60)} <= set(logits[0].topk(3).indices.tolist())
    sampler.admit(Admit(2, SETTINGS[0], (), 1))
    assert {_tokens(sampler, logits, [2], [at])[0] for at in range(20)} == {int(logits.argmax())}
    sampler.admit(Admit(2, SETTINGS[1], (), 1))
    assert [_tokens(sampler, logits, [2], [at])[0] for at in range(20)] == first


class _Operations(TorchDispatchMode):
    """Counts the operations that would be launched."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


PROMPT, OUTPUT = (5, 5, 9, 200), (7, 9, 9)
ADJUSTED = SamplingParams(
    max_tokens=99, seed=1, temperature=0.0, repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5,
    logit_bias=((9, 1.5), (30, -2.0)), stop_token_ids=(40, 41), min_tokens=5,
)  # fmt: skip


def _expected(logits: Tensor, output: list[int], position: int) -> Tensor:
    """The logits of one row after the settings of ADJUSTED."""
    out = logits.clone()
    for token in {*PROMPT, *output}:
        out[token] = out[token] / 1.5 if out[token] > 0 else out[token] * 1.5
    for token in set(output):
        out[token] -= 0.25 + 0.5 * output.count(token)
    out[9] += 1.5
    out[30] -= 2.0
    if position - len(PROMPT) < 5:
        out[[40, 41]] = float("-inf")
    return out


def test_penalties_biases_and_early_stops_of_several_rows(sampler: Sampler) -> None:
    for slot in (1, 3, 4):
        sampler.admit(Admit(slot, ADJUSTED, (*PROMPT, *OUTPUT), len(PROMPT)))
    sampler.admit(Admit(0, SETTINGS[0], (), 1))
    outputs = {slot: list(OUTPUT) for slot in (1, 3, 4)}
    for step in range(12):
        logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(step))
        # A stop token would win, and does once it may.
        logits[:, 40] = 4.5
        position = len(PROMPT) + len(OUTPUT) + step
        got = _tokens(sampler, logits, [3, 0, 1, 4], [position] * 4)
        assert got[1] == int(logits[1].argmax())
        for row, slot in ((0, 3), (2, 1), (3, 4)):
            assert got[row] == int(_expected(logits[row], outputs[slot], position).argmax())
            outputs[slot].append(got[row])
    assert 40 in outputs[1]


def test_a_row_with_penalties_adds_no_operation_and_no_wait(sampler: Sampler) -> None:
    counted = []
    for rows in (2, SLOTS):
        for slot in range(rows):
            sampler.admit(Admit(slot, ADJUSTED, (*PROMPT, *OUTPUT), len(PROMPT)))
        with _Operations() as operations:
            _tokens(sampler, _logits(rows), list(range(rows)), [8] * rows)
        counted.append(operations.seen)
    assert counted[0] == counted[1]
    # What reads a number back from the device.
    assert not counted[0]["_local_scalar_dense"]
    assert not counted[0]["nonzero"]
