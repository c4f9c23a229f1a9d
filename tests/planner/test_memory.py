"""Tests a card's memory: sums, monotonicity, what limits it, and the remarks when something does not fit."""

from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cards import Card, cards, find_card
from planner.counts import weight_bytes
from planner.errors import PlanError
from planner.memory import (
    Layout,
    activation_bytes,
    capacity,
    divide,
    enough,
    free_bytes,
    logit_bytes,
    mean_length_for,
    page_bytes,
    pages_of,
)
from planner.model import FORMATS, RELEASED, Format, Model, load_model
from planner.plan import Plan, make_plan
from planner.question import Question
from workers.memory import GRAPH_BYTES

FLASH = load_model(RELEASED)

models = st.sampled_from(FORMATS).map(lambda weights: replace(FLASH, weights=weights))
some_card = st.sampled_from(list(cards().values()))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    context = draw(st.integers(2, 262_144))
    return Layout(
        tp=draw(st.sampled_from([1, 2, 4])),
        context=context,
        mean_length=draw(st.integers(1, context)),
        sessions=draw(st.none() | st.integers(1, 5_000)),
        step_tokens=draw(st.integers(1, 16_384)),
        page_size=draw(st.sampled_from([1, 16, 64, 256])),
        kept_states=draw(st.none() | st.integers(0, 100)),
    )


@settings(max_examples=150, deadline=None)
@given(models, some_card, layouts())
def test_the_kinds_of_memory_add_up_to_the_card(model: Model, card: Card, layout: Layout) -> None:
    held = capacity(model, card, layout)
    memory = divide(model, card, layout, held)
    total, *kinds = astuple(memory)
    assert sum(kinds) == total == card.memory
    assert memory.weights == sum(weight_bytes(model, False, layout.tp).values())
    if held.fits == held.slots > 0:
        assert memory.unused >= 0


@settings(max_examples=150, deadline=None)
@given(models, some_card, layouts())
def test_the_held_sessions_fit_and_one_more_does_not(model: Model, card: Card, layout: Layout) -> None:
    held = capacity(model, card, layout)
    slot = model.state_bytes(layout.tp) + logit_bytes(model)
    if layout.kept_states is None:  # each slot brings one
        slot += model.state_bytes(layout.tp)
    pages = pages_of(layout.mean_length, layout.page_size) * page_bytes(model, layout)
    free = max(0, free_bytes(model, card, layout))
    assert held.fits <= held.most <= held.by_slots
    assert held.most * (slot + pages) <= free < (held.most + 1) * (slot + pages)
    assert held.pages == 0 or held.slots * slot + held.pages * page_bytes(model, layout) <= free
    if layout.sessions is not None and layout.sessions <= held.most:
        assert held.fits == layout.sessions


@settings(max_examples=150, deadline=None)
@given(models, some_card, layouts())
def test_more_ranks_never_more_bytes_nor_fewer_sessions(model: Model, card: Card, layout: Layout) -> None:
    layout = replace(layout, sessions=None)
    one, two, four = (replace(layout, tp=tp) for tp in (1, 2, 4))
    for few, many in ((one, two), (two, four)):
        assert sum(weight_bytes(model, False, many.tp).values()) <= sum(weight_bytes(model, False, few.tp).values())
        assert activation_bytes(model, many) <= activation_bytes(model, few)
        assert free_bytes(model, card, many) >= free_bytes(model, card, few)
        assert capacity(model, card, many).most >= capacity(model, card, few).most


@settings(max_examples=150, deadline=None)
@given(models, some_card, layouts(), st.integers(1, 10_000))
def test_longer_sessions_are_never_more(model: Model, card: Card, layout: Layout, longer: int) -> None:
    after = replace(layout, context=layout.context + longer, mean_length=layout.mean_length + longer)
    assert capacity(model, card, after).most <= capacity(model, card, layout).most


@settings(max_examples=150, deadline=None)
@given(models, some_card, layouts(), st.integers(1, 5_000))
def test_mean_length_for_is_the_longest(model: Model, card: Card, layout: Layout, sessions: int) -> None:
    length = mean_length_for(model, card, layout, sessions)
    if length:
        assert capacity(model, card, replace(layout, sessions=sessions, mean_length=length)).fits == sessions
    longer = length + layout.page_size
    assert capacity(model, card, replace(layout, sessions=sessions, mean_length=longer)).fits < sessions


def plan(
    gpu: str, weights: Format, tp: int = 1, context: int = 131_072, mean: int | None = None, sessions: int | None = None
) -> Plan:
    layout = Layout(tp, context, mean or context, sessions)
    return make_plan(Question(replace(FLASH, weights=weights), find_card(gpu), layout, 50e9, min(8192, context)))


def test_int4_is_not_for_a_24_gb_card() -> None:
    found = plan("rtx-4090-24gb", "int4", context=32_768)
    assert not found.fits
    assert found.capacity.binds == "weights"
    assert found.decode == ()
    assert found.prefill is None
    assert found.memory.unused < 0
    assert "the int4 weights take 60.38 GiB; of the 23.99 GiB of one rtx-4090-24gb" in found.words[0]
    assert found.words[1] == "What would: --gpus-per-worker 4; --gpu h100-80gb, the smallest that does with one card."
    assert plan("rtx-4090-24gb", "int4", tp=4, context=32_768).fits
    assert plan("h100-80gb", "int4", context=32_768).fits


def test_fp8_is_not_for_one_80_gb_card() -> None:
    found = plan("h100-80gb", "fp8", context=32_768)
    assert not found.fits
    assert "--gpus-per-worker 2" in found.words[1]
    assert "--dtype int4" in found.words[1]


def test_two_changes_are_proposed_if_one_is_not_enough() -> None:
    found = plan("rtx-4090-24gb", "bf16", sessions=200)
    assert found.words[1].startswith("What would: --gpu ")
    gpu, tp = found.words[1].removeprefix("What would: --gpu ").removesuffix(".").split(" with --gpus-per-worker ")
    assert plan(gpu, "bf16", tp=int(tp), sessions=200).fits


def test_pages_bind_for_long_sessions_and_slots_for_short_ones() -> None:
    long = plan("h200-141gb", "fp8", tp=4, sessions=200)
    assert (long.capacity.binds, long.fits) == ("pages", False)
    assert long.words[0].startswith(f"200 sessions do not fit: pages bind at {long.capacity.by_pages:,}")
    assert long.words[1].startswith(f"What would: --sessions {long.capacity.most};")
    short = plan("h200-141gb", "fp8", tp=4, mean=2_048, sessions=200)
    assert (short.capacity.binds, short.fits) == ("slots", True)
    many = plan("h200-141gb", "fp8", tp=4, mean=64, sessions=100_000)
    assert (many.capacity.binds, many.capacity.pages, many.fits) == ("slots", 0, False)
    assert many.words[0].startswith(f"100,000 sessions do not fit: slots bind at {many.capacity.by_slots:,};")
    assert plan("h200-141gb", "fp8", tp=4).capacity.binds == "pages"
    assert plan("h200-141gb", "fp8", tp=4, mean=512).capacity.binds == "slots"


def test_every_remedy_named_works() -> None:
    """Each proposed change of sessions, mean length, format or card really makes it fit."""
    found = plan("h200-141gb", "fp8", tp=4, sessions=200).words[1]
    said = found.removeprefix("What would: ").removesuffix(".").split("; ")
    sessions = int(said[0].split()[1])
    mean = int(said[1].split()[2].replace(",", ""))
    assert plan("h200-141gb", "fp8", tp=4, sessions=sessions).fits
    assert not plan("h200-141gb", "fp8", tp=4, sessions=sessions + 1).fits
    assert plan("h200-141gb", "fp8", tp=4, sessions=200, mean=mean).fits
    gpu = said[2].split()[1].removesuffix(",")
    assert plan(gpu, "fp8", tp=4, sessions=200).fits


def test_a_full_context_must_find_its_pages() -> None:
    """Many slots leave enough pages for short sessions, but not for a long one."""
    model, card = replace(FLASH, weights="fp8"), find_card("h200-141gb")
    layout = Layout(4, 131_072, 64, 7_125, kept_states=0)
    held = capacity(model, card, layout)
    assert held.pages < pages_of(131_072, 64)
    assert not held.longest_fits
    assert not enough(held, layout)
    words = make_plan(Question(model, card, layout, 50e9, 64)).words
    assert "too few for one session at its full context of 131,072" in words[0]
    fewer = int(words[1].removeprefix("What would: --sessions ").split(";")[0].removesuffix("."))
    assert make_plan(Question(model, card, replace(layout, sessions=fewer), 50e9, 64)).fits


def test_notes() -> None:
    def words(gpu: str, weights: Format, context: int = 131_072) -> str:
        return " ".join(plan(gpu, weights, 4, context, 1024).words)

    assert "no MTP layer" in words("h200-141gb", "int4")
    with pytest.raises(PlanError, match="a100-80gb has no 8-bit floats"):
        words("a100-80gb", "fp8")
    assert "its products are taken in bf16" in words("h200-141gb", "fp8-channel")
    assert "its products are taken in bf16" not in words("h200-141gb", "fp8")
    assert "assumed share (90% and 80%)" in words("h100-80gb", "fp8")
    assert "assumed share" not in words("h200-141gb", "fp8")
    assert "YaRN" in words("h200-141gb", "fp8", 262_144)


def test_cards() -> None:
    assert find_card("H200-141GB").bandwidth == 4.3e12
    assert find_card("h200-141gb").bf16_flops == 790e12
    with pytest.raises(PlanError, match="did you mean h200-141gb"):
        find_card("h200")
    for card in cards().values():
        assert card.source
        assert card.bandwidth <= card.datasheet_bandwidth
        assert card.bf16_flops <= card.datasheet_bf16_flops
        assert card.fp8_flops >= card.bf16_flops


def test_kept_states_and_host_memory_are_counted() -> None:
    model, card = replace(FLASH, weights="fp8"), find_card("h200-141gb")
    layout = Layout(4, 131_072, 32_768, 64, kept_states=0)
    plain, keeping, usual = (
        make_plan(Question(model, card, each, 50e9, 64))
        for each in (
            layout,
            replace(layout, kept_states=64, host_bytes=100 * 10**9),
            replace(layout, kept_states=None),
        )
    )
    assert keeping.memory.kept == 64 * model.state_bytes(4)
    assert (plain.memory.kept, usual.memory) == (0, keeping.memory)
    assert usual.capacity.kept_states == 64
    # What a worker's states take: `workers.rank.build` has one more slot, for captured steps.
    assert usual.memory.states + usual.memory.kept + usual.memory.graphs - GRAPH_BYTES == 129 * model.state_bytes(4)
    assert plain.memory.latents - keeping.memory.latents == pytest.approx(
        keeping.memory.kept, abs=page_bytes(model, layout)
    )
    # A state of 56 MiB over all ranks, and 4,608 bytes a token.
    assert keeping.capacity.kept_on_host == 100 * 10**9 // (56 * 2**20 + 32_768 * 4_608)
    assert plain.capacity.kept_on_host == 0
    with pytest.raises(PlanError, match="--kept-states"):
        make_plan(Question(model, card, replace(layout, host_bytes=1), 50e9, 64))


def test_as_many_kept_states_as_slots_leave_half_the_room_for_states() -> None:
    model, card = replace(FLASH, weights="fp8"), find_card("h200-141gb")
    off, usual = (capacity(model, card, Layout(4, 131_072, 64, kept_states=kept)) for kept in (0, None))
    assert usual.kept_states == usual.slots < 0.6 * off.slots
