"""Tests the model against logits of the official code, on checkpoints in the released layout."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import kernels.mla.forms
import kernels.mla.layer
from tests.forks import FORKS
from tests.workers.model_rig import GOLDEN, Driver, known_sequences, mixed, one_by_one, rank_errors
from workers.collectives import Solo
from workers.collectives.shm import ShmCollectives
from workers.model.config import LingConfig
from workers.model.lightning import log_decay
from workers.model.ling import LingModel, make_caches
from workers.model.weights import load_weights

pytestmark = pytest.mark.process

SIZES = [("base", 1), ("base", 2), ("yarn", 1), ("yarn", 2), ("tp4", 1), ("tp4", 2), ("tp4", 4)]
TOLERANCE = 1e-3


def _close(errors: list[float]) -> bool:
    """Whether an error is within the bound; NaN is not."""
    return all(error < TOLERANCE for error in errors)


@pytest.mark.parametrize(("name", "tp"), SIZES)
def test_whole_prompts_then_decode(name: str, tp: int) -> None:
    errors = rank_errors(name, tp, one_by_one(known_sequences(GOLDEN / name)))
    assert _close(errors), errors


@pytest.mark.parametrize(("name", "tp"), SIZES)
def test_uneven_chunks_of_several_sequences_in_one_batch(name: str, tp: int) -> None:
    errors = rank_errors(name, tp, mixed(known_sequences(GOLDEN / name), seed=tp))
    assert _close(errors), errors


@pytest.mark.parametrize(("name", "tp"), [("base", 1), ("yarn", 2), ("tp4", 4)])
def test_prompts_and_chunks_in_expanded_form(name: str, tp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.mla.forms, "LEAST", 3)
    expanded = []
    known = kernels.mla.layer.mla_prefill
    monkeypatch.setattr(kernels.mla.layer, "mla_prefill", lambda *a: (expanded.append(a), known(*a)))
    for schedule in (one_by_one, partial(mixed, seed=tp)):
        errors = rank_errors(name, tp, schedule(known_sequences(GOLDEN / name)))
        assert _close(errors), errors
        assert expanded
        expanded.clear()


def test_a_slot_and_pages_are_reused_by_another_sequence() -> None:
    folder = GOLDEN / "base"
    known = known_sequences(folder)
    driver = Driver(folder, Solo(), [known[1], known[0]])
    assert driver.errors([[(0, 50)]]) < TOLERANCE
    # The second sequence moves into the first one's slot and pages, whose content is not its own.
    driver.slots[1] = driver.slots[0]
    schedule = [[(1, n)] for n in (1, 20, known[0].prompt - 21, *[1] * 24)]
    assert driver.errors(schedule) < TOLERANCE


def test_bfloat16_stays_near() -> None:
    folder = GOLDEN / "tp4"
    driver = Driver(folder, Solo(), known_sequences(folder))
    config = driver.model.config
    driver.model = LingModel(config, Solo(), torch.device("cpu"), torch.bfloat16)
    load_weights(driver.model, folder)
    pages, page_size = driver.caches.latent.shape[1:3]
    slots = driver.caches.state.shape[1]
    driver.caches = make_caches(config, 1, pages, page_size, slots, torch.device("cpu"), torch.bfloat16)
    assert driver.caches.state.dtype == torch.float32
    known = driver.known[1]
    got = driver.step([(1, known.prompt)])[0]
    assert torch.nn.functional.cosine_similarity(got, known.logits[: known.prompt]).min() > 0.95


@pytest.mark.parametrize("layers", [8, 32])
def test_decay_uses_the_layer_index_itself(layers: int) -> None:
    config = LingConfig.load(GOLDEN / "tp4", {"num_hidden_layers": layers})
    for layer in (0, 1, layers - 2):
        expected = [-(2.0 ** -(h + 1)) * (1 - layer / (layers - 1) + 1e-5) for h in range(8)]
        got = log_decay(config, layer).tolist()
        assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(got, expected, strict=True))


def _rank(folder: Path, name: str, rank: int, tp: int, out: Any) -> None:
    torch.set_num_threads(1)
    collectives = ShmCollectives(rank, tp, folder)
    try:
        sequences = known_sequences(GOLDEN / name)
        driver = Driver(GOLDEN / name, collectives, sequences)
        out.put(driver.errors(mixed(sequences, seed=3)))
    finally:
        collectives.close()


@pytest.mark.process
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("name", "tp"), [("base", 2), ("yarn", 2), ("tp4", 4)])
def test_ranks_as_processes_over_shared_memory(name: str, tp: int, tmp_path: Path) -> None:
    out = FORKS.Queue()
    ranks = [FORKS.Process(target=_rank, args=(tmp_path, name, r, tp, out), daemon=True) for r in range(tp)]
    try:
        for process in ranks:
            process.start()
        errors = [out.get(timeout=150) for _ in ranks]
        for process in ranks:
            process.join(timeout=10)
    finally:
        for process in ranks:
            process.kill()
    assert _close(errors), errors
    assert [process.exitcode for process in ranks] == [0] * tp
