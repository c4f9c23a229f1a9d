"""Tests the model with the kernels against logits of the official code."""

from importlib import import_module

import pytest
import torch

from tests.workers.model_rig import GOLDEN, Driver, Step, known_sequences
from workers.collectives import Solo

pytestmark = pytest.mark.process
TOLERANCE = 1e-3
# Short: interpreted, a token of a few layers takes seconds. Prompts together, then one in two parts beside a decoding
# one, then both decoding.
MIXED: list[Step] = [[(2, 3), (0, 2)], [(0, 2), (2, 1)], [(0, 1), (2, 1)]]
ALONE: list[Step] = [[(2, 2)], [(2, 1)]]


@pytest.mark.parametrize(("name", "schedule"), [("base", MIXED), ("fp8", ALONE), ("int4", ALONE)], ids=str)
def test_golden_logits(name: str, schedule: list[Step], device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("kernels.dispatch"), "FORCED", "triton")
    driver = Driver(GOLDEN / name, Solo(), known_sequences(GOLDEN / name), device=device)
    assert driver.errors(schedule) < TOLERANCE
