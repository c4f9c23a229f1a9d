"""Tests the coefficients that routers get against the cost model."""

import pytest

from planner.cards import find_card
from planner.coefficients import Coefficients, coefficients
from planner.model import RELEASED, load_model
from planner.speed import decode_time, prefill
from planner.traffic import snapshot_bytes

MODEL, CARD = load_model(RELEASED, "fp8"), find_card("h200-141gb")


@pytest.fixture(scope="module")
def found() -> Coefficients:
    return coefficients(MODEL, CARD, 4, 8192, 12.5e9)


@pytest.mark.parametrize(("past", "new"), [(0, 8192), (32_768, 8192), (100_000, 8192), (0, 98_304)])
def test_prompts_take_the_time_of_the_cost_model(found: Coefficients, past: int, new: int) -> None:
    seconds = found.token_s * new * (1 + (past + new / 2) / found.knee_tokens)
    assert seconds == pytest.approx(prefill(MODEL, CARD, 4, 8192, new, past).seconds, rel=0.05)


@pytest.mark.parametrize(("batch", "context"), [(16, 8192), (32, 16_000), (64, 4096), (64, 32_768), (128, 8192)])
def test_decode_steps_take_the_time_of_the_cost_model(found: Coefficients, batch: int, context: int) -> None:
    seconds = found.step_s + found.sequence_s * batch + found.context_s * batch * context
    assert seconds == pytest.approx(decode_time(MODEL, CARD, 4, batch, context).seconds, rel=0.2)


def test_a_snapshot_takes_its_bytes_over_the_network(found: Coefficients) -> None:
    sent = snapshot_bytes(MODEL, 50_000) / 4 / 12.5e9
    assert found.state_s + 50_000 * found.latent_s == pytest.approx(sent, rel=0.15)
