"""Tests the trainable twin against the official code's logits and the served model, and its export."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.workers.model_rig import GOLDEN, Driver, Known
from training import tokenizer as nano_tokenizer
from training.export import export
from training.layout import load, released
from training.model import Nano, Shape
from training.start import initialise
from workers.collectives import Solo

pytestmark = pytest.mark.process

SMALL = Shape(vocab_size=400, intermediate_size=96, num_hidden_layers=4, moe_intermediate_size=32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    nano_tokenizer.save(nano_tokenizer.build(SMALL.vocab_size, dialogues=150), folder / "made.json")
    model = Nano(SMALL)
    initialise(model, 3)
    for experts in model.experts():
        experts.expert_bias.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    export(model, folder / "made.json", folder / "out")
    return folder / "out"


def _logits(model: Nano, ids: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        hidden = model(ids)
        return model.lm_head(hidden), model.lm_head(model.ahead(ids, hidden))


@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_golden_logits_of_model_and_mtp_layer(prompt: int) -> None:
    model = load(GOLDEN / "base")
    known = load_file(GOLDEN / "base" / "golden.safetensors")
    logits, ahead = _logits(model, known[f"{prompt}.prompt_ids"].long()[None])
    torch.testing.assert_close(logits[0], known[f"{prompt}.prompt_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(ahead[0], known[f"{prompt}.mtp_logits"], atol=1e-4, rtol=0)


def test_layout_is_the_released_one_both_ways() -> None:
    tensors = load_file(GOLDEN / "base" / "model-00001-of-00001.safetensors")
    again = released(load(GOLDEN / "base"))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_padding_and_neighbours_change_nothing(exported: Path) -> None:
    model = load(exported)
    ids = torch.randint(0, 400, (2, 70), generator=torch.Generator().manual_seed(5))
    ids[0, 41:] = 0
    together, _ = _logits(model, ids)
    alone, _ = _logits(model, ids[:1, :41])
    torch.testing.assert_close(together[:1, :41], alone, atol=1e-4, rtol=1e-4)


def test_the_served_model_gives_the_same_logits(exported: Path) -> None:
    ids = torch.randint(0, 400, (150,), generator=torch.Generator().manual_seed(6))
    logits, _ = _logits(load(exported), ids[None])
    driver = Driver(exported, Solo(), [Known(ids.tolist(), 120, logits[0])])
    assert driver.errors([[(0, n)] for n in (50, 70, *[1] * 30)]) < 1e-3


def test_gradients_reach_every_weight() -> None:
    model = Nano(SMALL)
    initialise(model, 4)
    ids = torch.randint(0, 400, (2, 65), generator=torch.Generator().manual_seed(7))
    hidden = model(ids)
    loss = model.lm_head(hidden).logsumexp(-1).sum() + model.lm_head(model.ahead(ids, hidden)).square().sum()
    torch.autograd.backward(loss)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_expert_gradients_match_finite_differences() -> None:
    torch.manual_seed(0)
    model = Nano(Shape(vocab_size=32, hidden_size=128, num_hidden_layers=2, moe_intermediate_size=8))
    initialise(model, 0)
    layer = model.experts()[0].double()
    x = torch.randn(1, 12, 128, dtype=torch.double, requires_grad=True)
    target = torch.randn(1, 12, 128, dtype=torch.double)
    (layer(x) * target).sum().backward()
    assert x.grad is not None
    direction = torch.randn_like(x)
    small = 1e-6 * direction
    with torch.no_grad():
        slope = ((layer(x + small) - layer(x - small)) * target).sum() / 2e-6
    torch.testing.assert_close((x.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)


def test_rebalancing_lifts_the_idle_and_lowers_the_busy() -> None:
    model = Nano(SMALL)
    experts = model.experts()[0]
    experts.load = torch.tensor([0.0, 10, 10, 10, 10, 10, 10, 20])
    experts.rebalance(0.01)
    assert experts.expert_bias.tolist() == pytest.approx([0.01, 0, 0, 0, 0, 0, 0, -0.01])
    assert not experts.load.any()


def test_the_start_already_continues_a_repetition() -> None:
    model = Nano(Shape())
    initialise(model, 1)
    once = torch.randint(270, 1270, (4, 60), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([once, once], 1)
    logits, _ = _logits(model, ids)
    right = logits[:, 60:-1].argmax(-1) == ids[:, 61:]
    assert right.float().mean() > 0.3
