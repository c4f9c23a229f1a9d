"""Tests that two processes train as one process does on the same tokens."""

from pathlib import Path

import pytest
import torch

from training.batches import Batch
from training.model import Nano, Shape
from training.ranks import Ranks, on_each
from training.start import initialise

pytestmark = pytest.mark.process

TINY = Shape(vocab_size=60, intermediate_size=32, num_hidden_layers=2, moe_intermediate_size=16)


def _gradients(model: Nano, ids: torch.Tensor) -> None:
    torch.autograd.backward(model.lm_head(model(ids)).square().mean())


def _made() -> tuple[Nano, torch.Tensor]:
    torch.set_num_threads(1)
    model = Nano(TINY)
    initialise(model, 1)
    return model, torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(2))


def _one(ranks: Ranks, folder: str) -> None:
    model, ids = _made()
    _gradients(model, ids[ranks.rank : ranks.rank + 1])
    told = ranks.reduce(model, 9 + ranks.rank, ranks.rank == 1)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    loads = [experts.load for experts in model.experts()]
    torch.save((told, gradients, loads), Path(folder) / f"{ranks.rank}.pt")


def test_gradients_are_those_of_all_tokens(tmp_path: Path) -> None:
    on_each(2, _one, str(tmp_path))
    (told, gradients, loads), other = (torch.load(tmp_path / f"{i}.pt") for i in range(2))
    assert told == other[0] == (19, True)
    model, ids = _made()
    _gradients(model, ids)
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.equal(gradients[name], other[1][name])
            torch.testing.assert_close(gradients[name], p.grad, atol=1e-6, rtol=1e-4)
    assert all(torch.equal(a, b.load) for a, b in zip(loads, model.experts(), strict=True))


def test_each_takes_as_many_batches_as_the_other() -> None:
    empty = torch.zeros(0)
    batches = [Batch(torch.tensor([i]), empty, empty, empty) for i in range(5)]
    taken = [[int(b.ids) for b in Ranks(rank, 2).share(batches)] for rank in range(2)]
    assert taken == [[0, 2], [1, 3]]
    assert Ranks().share(batches) == batches
