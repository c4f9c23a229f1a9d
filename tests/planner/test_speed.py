"""Tests the limits of steps, hand-offs and pools against figures computed by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cards import Card, cards, find_card
from planner.errors import PlanError
from planner.memory import Layout
from planner.model import FORMATS, RELEASED, Format, Model, load_model
from planner.speed import (
    bandwidth_fraction,
    decode_limit,
    decode_time,
    flops_fraction,
    fraction_of_limit,
    prefill,
    reduce_seconds,
    step_time,
)
from planner.traffic import TARGET_LOAD, Traffic, fleet, handoff, settled_batch
from planner.work import Step, attention_flops, matmul_flops, touched_share, work

FLASH = load_model(RELEASED)
FP8 = replace(FLASH, weights="fp8")
H200 = find_card("h200-141gb")
LAYOUT = Layout(4, 131_072, 8_192, 200, step_tokens=1024)

formats = st.sampled_from(FORMATS).map(lambda weights: replace(FLASH, weights=weights))
ranks = st.sampled_from([1, 2, 4])


def test_batch_one_limit_of_one_h200() -> None:
    assert round(decode_limit(FP8, H200, 1, 1, 0)) == 559


@pytest.mark.parametrize(("weights", "gb"), [("bf16", 13.6), ("fp8", 7.6), ("int4", 9.1)])
def test_bytes_of_a_token_at_batch_one(weights: Format, gb: float) -> None:
    moved = work(replace(FLASH, weights=weights), Step(1, 1, 0, 1), 1)
    assert round(moved.weights / 1e9, 1) == gb
    assert round(moved.states / 1e9, 2) == 0.12


def test_flops_of_a_token() -> None:
    """It takes 2 FLOPs per active parameter without embedding, norms and biases."""
    bf16, fp8 = matmul_flops(FP8, Step(1, 1, 0, 1), 1)
    active = 7_449_488_128 - 157_184 * 4_096
    assert (bf16 + fp8) / 2 == pytest.approx(active, rel=1e-4)
    quantized = 28 * 5 * 4_096**2 + 4 * 4_096**2 + 3 * 9_216 * 4_096 + 31 * 9 * 3 * 1_024 * 4_096
    assert fp8 / 2 == quantized
    bf16_only, none = matmul_flops(FLASH, Step(1, 1, 0, 1), 1)
    assert none == 0
    assert bf16_only == bf16 + fp8


def test_attention_takes_the_cheaper_form() -> None:
    """One token against a long past stays in the latent space; a long prompt without a past expands it."""
    linear = 28 * 32 * 4 * 128
    token = attention_flops(FLASH, Step(1, 1, 100_000, 1), 1)
    assert token == linear * (128 + 1) + 4 * 32 * 2 * 100_001 * (2 * 512 + 64)
    prompt = attention_flops(FLASH, Step(1, 4096, 0, 1), 1)
    assert prompt == linear * (128 + 64) * 4096 + 4 * 32 * 2 * 4096 * 4097 / 2 * (192 + 128)


def test_experts_touched() -> None:
    assert touched_share(FLASH, 0) == 0
    assert touched_share(FLASH, 1) == pytest.approx(8 / 256)
    assert touched_share(FLASH, 2) == pytest.approx(15.75 / 256)
    assert touched_share(FLASH, 10_000) == pytest.approx(1)


def test_reduce() -> None:
    assert reduce_seconds(H200, 1, 1e6) == 0
    assert reduce_seconds(H200, 4, 1e6) == pytest.approx(H200.link_latency + 1.5e6 / H200.link_bandwidth)


@settings(max_examples=100, deadline=None)
@given(formats, st.sampled_from(list(cards().values())), ranks, st.integers(1, 2_000), st.integers(0, 100_000))
def test_decode_grows_with_batch_and_context(model: Model, card: Card, tp: int, batch: int, context: int) -> None:
    now = decode_time(model, card, tp, batch, context)
    assert decode_time(model, card, tp, batch + 1, context).seconds > now.seconds
    assert decode_time(model, card, tp, batch, context + 1).memory_s > now.memory_s
    assert decode_limit(model, card, tp, batch + 1, context) >= decode_limit(model, card, tp, batch, context) * (
        1 - 1e-9
    )


@settings(max_examples=60, deadline=None)
@given(formats, ranks, st.integers(1, 8_192), st.integers(0, 65_536))
def test_ranks_share_the_work(model: Model, tp: int, new: int, past: int) -> None:
    """All ranks together do at least the work of one alone, because each repeats what all hold."""
    one, share = (work(model, Step(1, new, past, 1), ranks) for ranks in (1, tp))
    assert share.bytes <= one.bytes <= tp * share.bytes * (1 + 1e-9)
    assert share.bf16_flops <= one.bf16_flops <= tp * share.bf16_flops * (1 + 1e-9)


def test_prefill_is_the_sum_of_its_chunks() -> None:
    found = prefill(FP8, H200, 4, 1024, 2_500, 500)
    steps = [Step(1, 1024, 500, 0), Step(1, 1024, 1524, 0), Step(1, 452, 2548, 1)]
    assert found.seconds == pytest.approx(sum(step_time(FP8, H200, 4, step).seconds for step in steps))
    assert found.last_chunk_s == step_time(FP8, H200, 4, steps[-1]).seconds
    assert found.tokens_per_s == pytest.approx(2_500 / found.seconds)


def test_short_prompts_share_a_step() -> None:
    found = prefill(FP8, H200, 4, 1024, 100, 0)
    assert found.seconds == step_time(FP8, H200, 4, Step(1, 100, 0, 1)).seconds
    assert found.tokens_per_s == pytest.approx(1_000 / step_time(FP8, H200, 4, Step(10, 100, 0, 10)).seconds)


def test_wider_steps_leave_the_bandwidth() -> None:
    narrow, wide = (prefill(FP8, H200, 1, tokens, 16_384, 0) for tokens in (512, 16_384))
    assert (narrow.bound, wide.bound) == ("bandwidth", "compute")
    assert wide.tokens_per_s > 2 * narrow.tokens_per_s


def test_fractions() -> None:
    step = Step(32, 1, 8_192, 32)
    limit = step_time(FP8, H200, 4, step)
    assert fraction_of_limit(2 * limit.seconds, limit.seconds) == 0.5
    assert bandwidth_fraction(FP8, H200, 4, step, limit.memory_s) == 1
    assert flops_fraction(FP8, H200, 4, step, 4 * limit.compute_s) == 0.25
    with pytest.raises(ValueError, match="above 0 s"):
        fraction_of_limit(0, 1)


def test_handoff_by_hand() -> None:
    prompt = prefill(FP8, H200, 4, 1024, 2_000, 0)
    moved = handoff(FP8, H200, LAYOUT, 50e9, prompt)
    assert moved.snapshot_bytes == 58_720_256 + 2_000 * 4_608
    assert moved.card_bytes == moved.snapshot_bytes / 4
    assert moved.seconds - moved.gather_s == pytest.approx(moved.card_bytes / 50e9)
    assert moved.exposed_s - moved.gather_s == pytest.approx((58_720_256 + 976 * 4_608) / 4 / 50e9)


def test_a_slow_network_is_exposed() -> None:
    """If sending takes longer than computing, the difference remains exposed."""
    prompt = prefill(FP8, H200, 4, 1024, 8_192, 0)
    moved = handoff(FP8, H200, LAYOUT, 1e8, prompt)
    before_last = prompt.seconds - prompt.last_chunk_s
    assert moved.exposed_s - moved.gather_s == pytest.approx(moved.card_bytes / 1e8 - before_last)
    assert moved.exposed_s < moved.seconds


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 500), st.integers(1, 65_536), st.integers(1, 4_096), st.floats(0, 1))
def test_pools_carry_the_traffic(rate: float, prompt: int, output: int, hits: float) -> None:
    traffic = Traffic(rate, prompt, output, hits)
    assert 1 <= traffic.new_tokens <= prompt
    found = fleet(FP8, H200, LAYOUT, 50e9, traffic)
    assert found.prefill_workers * TARGET_LOAD >= found.prefill_need
    assert found.decode_workers * TARGET_LOAD >= found.decode_need
    made = found.decode_workers * found.batch / found.step.seconds
    assert made >= rate * output * (1 - 1e-9)
    assert found.batch <= found.held <= 200
    assert found.ratio == pytest.approx(found.prefill_need / found.decode_need)


def test_kept_snapshots_spare_prefill() -> None:
    cold, warm = (fleet(FP8, H200, LAYOUT, 50e9, Traffic(50, 8_192, 256, hits)) for hits in (0.0, 0.9))
    assert warm.prefill_need < cold.prefill_need / 5
    assert warm.ratio < cold.ratio / 5
    assert warm.decode_need == cold.decode_need


def test_the_limit_of_a_decode_worker_is_named() -> None:
    layout = Layout(4, 131_072, 8_192, None, step_tokens=64)
    assert fleet(FP8, H200, layout, 50e9, Traffic(1, 1_000, 100)).binds == "step tokens"
    assert fleet(FP8, H200, LAYOUT, 50e9, Traffic(1, 1_000, 100)).binds == "slots"
    long = fleet(FP8, H200, LAYOUT, 50e9, Traffic(1, 130_000, 1_000))
    assert long.binds == "pages"
    assert long.held < 200


def test_settled_batch_is_the_least_that_keeps_up() -> None:
    wanted = 3_000.0
    batch = settled_batch(FP8, H200, 4, wanted, 8_192, 500)
    assert decode_limit(FP8, H200, 4, batch, 8_192) >= wanted > decode_limit(FP8, H200, 4, batch - 1, 8_192)


def test_a_session_no_worker_holds() -> None:
    tight = Layout(1, 131_072, 64, 1, page_size=64)
    with pytest.raises(PlanError, match="a decode worker holds no session of 1000"):
        fleet(replace(FLASH, weights="int4"), find_card("rtx-4090-24gb"), tight, 50e9, Traffic(1, 800, 400))
