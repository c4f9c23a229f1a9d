"""Writes the remarks on a plan: whether it fits and what would, what limits it, and what the figures ignore."""

from collections.abc import Iterator
from dataclasses import replace

from planner.cards import Card, cards, serves
from planner.counts import weight_bytes
from planner.memory import (
    Capacity,
    Layout,
    capacity,
    enough,
    free_bytes,
    mean_length_for,
    page_bytes,
    pages_of,
)
from planner.model import FORMATS, Format, Model
from planner.question import Question
from planner.speculation import DRAFTS, GAINED
from planner.speed import Prefill, prefill
from planner.traffic import TARGET_LOAD, Fleet
from workers.memory import GIB
from workers.sizes import PREFILL_STEP_TOKENS, STEP_TOKENS

# Formats that a plan proposes: those of releases, and those that `ling convert` writes.
_RELEASED: tuple[Format, ...] = ("fp8", "int4")


def say(question: Question, held: Capacity, prompt: Prefill | None, pools: Fleet | None) -> tuple[str, ...]:
    """All remarks, the verdict first."""
    found = [_verdict(question, held)]
    if not enough(held, question.layout):
        found.append(_remedies(question))
    if prompt:
        found.append(_prefill(question, prompt))
    if pools:
        found.append(_pools(pools))
    return (*found, *_notes(question))


def _verdict(question: Question, held: Capacity) -> str:
    model, card, layout = question.model, question.card, question.layout
    if held.binds == "weights":
        return _too_small(model, card, layout)
    kept = ", as much for a kept one," if layout.kept_states is None else ""
    each = (
        f"a session of {layout.mean_length:,} tokens takes {gib(model.state_bytes(layout.tp))} of state{kept} and "
        f"{gib(pages_of(layout.mean_length, layout.page_size) * page_bytes(model, layout))} of latents a card"
    )
    if held.slots > held.by_slots:
        return f"{held.slots:,} sessions do not fit: slots bind at {held.by_slots:,}; {each}."
    if not held.longest_fits:
        return (
            f"Does not fit: beside {held.slots:,} slots there are pages for {held.pages * held.page_size:,} tokens, "
            f"too few for one session at its full context of {layout.context:,}; {each}."
        )
    if layout.sessions is None:
        return f"{held.fits:,} sessions fit: {each}, and both run out together, {held.binds} taking more of the memory."
    if held.fits < layout.sessions:
        return f"{layout.sessions:,} sessions do not fit: pages bind at {held.by_pages:,} beside so many slots; {each}."
    return (
        f"{layout.sessions:,} sessions fit, and their slots bind: the pages beside them hold {held.by_pages:,}, "
        f"and memory {held.most:,} with more slots; {each}."
    )


def _too_small(model: Model, card: Card, layout: Layout) -> str:
    whole, share = (sum(weight_bytes(model, layout.mtp, tp).values()) for tp in (1, layout.tp))
    spread = f", {gib(share)} on each of {layout.tp} cards" if layout.tp > 1 else ""
    room = free_bytes(model, card, layout) + share
    return (
        f"Does not fit: the {model.weights} weights take {gib(whole)}{spread}; of the {gib(card.memory)} of one "
        f"{card.name}, {gib(max(0, room))} are left for them beside context, graphs and activations."
    )


def _remedies(question: Question) -> str:
    found = list(_what_would(question))
    return "What would: " + "; ".join(found) + "." if found else "No card, format or number of cards known here would."


def _what_would(question: Question) -> Iterator[str]:
    """Yield single changes with which all sessions fit, the smallest first."""
    model, card, layout = question.model, question.card, question.layout
    held = capacity(model, card, layout)
    if held.binds != "weights" and layout.sessions:
        fewer = replace(layout, sessions=min(held.most, layout.sessions - 1))
        if fewer.sessions and enough(capacity(model, card, fewer), fewer):
            yield f"--sessions {fewer.sessions}"
        shorter = min(layout.mean_length, mean_length_for(model, card, layout, layout.sessions))
        if shorter and enough(capacity(model, card, at := replace(layout, mean_length=shorter)), at):
            yield f"sessions of {shorter:,} tokens in the mean (--mean-length)"
    for tp in model.allowed_tp():
        if tp > layout.tp and enough(capacity(model, card, wider := replace(layout, tp=tp)), wider):
            yield f"--gpus-per-worker {tp}"
            break
    for weights in FORMATS[FORMATS.index(model.weights) + 1 :]:
        lighter = replace(model, weights=weights)
        if weights in _RELEASED and layout.mtp <= lighter.has_mtp and enough(capacity(lighter, card, layout), layout):
            yield f"--dtype {weights}"
    larger = [
        other
        for other in cards().values()
        if serves(other, model.weights) and enough(capacity(model, other, layout), layout)
    ]
    if larger:
        yield f"--gpu {larger[0].name}, the smallest that does with {_cards(layout.tp)}"
    else:
        yield from _both(question)


def _both(question: Question) -> Iterator[str]:
    """Yield a larger card together with more cards, for when neither alone suffices."""
    model, layout = question.model, question.layout
    for tp in model.allowed_tp():
        wider = replace(layout, tp=tp)
        for card in cards().values():
            if tp > layout.tp and serves(card, model.weights) and enough(capacity(model, card, wider), wider):
                yield f"--gpu {card.name} with --gpus-per-worker {tp}"
                return


def _prefill(question: Question, prompt: Prefill) -> str:
    """Say what limits a prefill step, and the token budget at which reading weights limits it no more."""
    layout, card = question.layout, question.card
    said = f"{_budget(question, prompt)} A prefill step of {layout.step_tokens:,} tokens is bound by {prompt.bound}"
    if prompt.bound != "bandwidth":
        return said + "."
    wider = next(
        (
            (tokens, faster)
            for tokens in (layout.step_tokens << i for i in range(1, 8))
            if (faster := prefill(question.model, card, layout.tp, tokens, question.prompt, 0)).bound != "bandwidth"
            or tokens >= question.prompt
        ),
        None,
    )
    if wider is None:
        return said + "."
    gain = wider[1].tokens_per_s / prompt.tokens_per_s
    return (
        f"{said}: the weights are read once a step. With --step-tokens {wider[0]} the limit is {gain:.1f} times as "
        "high, and decode steps that share a worker with prompts are longer."
    )


def _budget(question: Question, prompt: Prefill) -> str:
    """Give the default token budgets of prefill and decode workers, with the reasons."""
    narrow = prefill(question.model, question.card, question.layout.tp, STEP_TOKENS, question.prompt, 0)
    gain = prompt.tokens_per_s / narrow.tokens_per_s
    return (
        f"Where max_step_tokens is not set, prefill workers take {PREFILL_STEP_TOKENS:,} tokens a step, for each step "
        f"reads the experts anew: {question.layout.step_tokens:,} tokens reach {gain:.1f} times the rate of "
        f"{STEP_TOKENS:,}. Decode workers take {STEP_TOKENS:,}: a chunk of a prompt holds their streams up for "
        f"{1e3 * narrow.last_chunk_s:.0f} ms at least."
    )


def _pools(pools: Fleet) -> str:
    load = pools.traffic.requests_per_s
    said = (
        f"{load:g} requests/s keep {pools.prefill_need:.2f} prefill and {pools.decode_need:.2f} decode workers busy; "
        f"at {TARGET_LOAD:.0%} load that is {pools.prefill_workers} and {pools.decode_workers}. A decode worker "
        f"settles at {pools.batch:,} sequences of the {pools.held:,} it can run, where {pools.binds} bind."
    )
    if pools.network_share > TARGET_LOAD:
        said += f" Hand-offs want {pools.network_share:.0%} of the prefill workers' network: too much."
    return said


def _notes(question: Question) -> Iterator[str]:
    model, card, layout = question.model, question.card, question.layout
    if layout.context > model.config.max_model_len:
        yield (
            f"A context of {layout.context:,} exceeds the checkpoint's {model.config.max_model_len:,}: serve it with "
            "YaRN's rope_scaling, factor 2, in model_overrides."
        )
    if layout.mtp:
        yield (
            f"With drafts: the MTP layer drafts {DRAFTS} tokens and a step gains {GAINED:g}, as reported of a "
            "sibling; `speculate: auto` drafts fewer or none where that is not faster."
        )
    if model.weights == "int4" and model.mtp_layers:
        yield "An INT4 release holds no MTP layer, whatever its config says: it serves without speculation."
    if model.weights == "bf16" and model.config.torch_dtype == "float32":
        yield "The checkpoint is float32; it is planned as served in bfloat16 (--dtype bfloat16)."
    if model.weights == "fp8-channel":
        yield "FP8 with a scale a channel saves memory, not compute: its products are taken in bf16."
    if not card.bandwidth_measured:
        yield (
            f"{card.name}: bandwidth and FLOP/s are the datasheet's times an assumed share "
            f"({card.bandwidth / card.datasheet_bandwidth:.0%} and {card.bf16_flops / card.datasheet_bf16_flops:.0%})."
        )
    yield "Times are limits: no launch gaps, experts evenly chosen, every kernel as fast as a large copy or product."


def gib(size: float) -> str:
    """A number of bytes as text, in GiB, or in MiB below one GiB."""
    return f"{size / GIB:,.2f} GiB" if abs(size) >= GIB else f"{size / (1 << 20):,.1f} MiB"


def _cards(count: int) -> str:
    return "one card" if count == 1 else f"{count} cards"
