"""Tests a training run: it learns, stops on request, and goes on where it stopped."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from training import tokenizer as nano_tokenizer
from training import train
from training.batches import Encoder
from training.corpus import dialogue
from training.evaluate import Tally, on_twin, with_ids
from training.export import export
from training.layout import load
from training.model import Nano, Shape
from training.optimizer import Optimizer, orthogonal
from training.ranks import Ranks

pytestmark = pytest.mark.process

TINY = Shape(vocab_size=400, intermediate_size=64, num_hidden_layers=4, moe_intermediate_size=16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setattr(train, "Shape", lambda: TINY)
    nano_tokenizer.save(nano_tokenizer.build(400, dialogues=150), tmp_path / "tokenizer.json")
    return tmp_path


def _args(folder: Path, steps: int) -> argparse.Namespace:
    return argparse.Namespace(
        run=folder,
        start=None,
        begin=0.0,
        steps=steps,
        tokens=450,
        longest=500,
        rate=0.006,
        bias_rate=0.005,
        save_every=1e9,
        seed=1,
    )


def test_a_run_learns_and_continues_where_it_stopped(folder: Path) -> None:
    first = train.Run(folder, _args(folder, 40), Ranks())
    first.train()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[1]["copying"] < lines[0]["copying"] < 6.5
    assert lines[1]["mtp"] > 0
    again = train.Run(folder, _args(folder, first.step + 1), Ranks())
    assert (again.step, again.pool, again.tokens) == (first.step, first.pool, first.tokens)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    again.stop()
    again.train()
    assert again.step == first.step


def test_a_run_can_begin_with_a_checkpoint(folder: Path) -> None:
    model = Nano(TINY)
    export(model, folder / "tokenizer.json", folder / "made")
    args = _args(folder / "next", 1)
    args.start = folder / "made"
    begun = train.Run(folder / "next", args, Ranks())
    given = load(folder / "made").state_dict()
    assert all(torch.equal(given[name], tensor) for name, tensor in begun.model.state_dict().items())
    assert (begun.step, begun.model.shape) == (0, TINY)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [train.rate(step, 1000) for step in (0, 49, 200, 300, 700, 999)]
    assert rates[0] < rates[1] == rates[2] == rates[3] == 1
    assert rates[3] > rates[4] > rates[5] > 0


def test_muon_steps_are_near_orthogonal() -> None:
    g = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonal(g))
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_optimizer_steps_and_clears_every_gradient() -> None:
    model = Nano(TINY)
    optimizer = Optimizer(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step(0.01, 0.01)
    assert all(p.grad is None and not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_the_tally_counts_turns_by_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder_file = folder / "tokenizer.json"
    tokenizer = nano_tokenizer.Tokenizer.from_file(str(encoder_file))
    tally = Tally()
    asked = [dialogue("count", i, {"agent": 1.0}) for i in range(5)]
    on_twin(Nano(TINY), tokenizer, iter(asked), tally)
    turns = sum(m["role"] == "assistant" for d in asked for m in d.messages)
    parallel = tally.asked["of these, several at once"]
    assert sum(tally.asked.values()) == turns + parallel
    assert tally.right.total() == 0
    assert "MTP first draft" in capsys.readouterr().out
    assert len(Encoder(tokenizer)(asked[0])[0]) > 0


def test_call_ids_pair_calls_with_results() -> None:
    made = next(d for i in range(99) for d in [dialogue("ids", i, {"agent": 1.0})] if len(d.messages) > 3)
    messages = with_ids(made.messages)
    called = [c["id"] for m in messages for c in m.get("tool_calls") or []]
    assert called == [m["tool_call_id"] for m in messages if m["role"] == "tool"]
    assert len(set(called)) == len(called)
