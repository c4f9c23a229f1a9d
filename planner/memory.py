"""Divides one card's memory, and counts the sessions that the rest of it holds.

Memory holds: weights (split by head, expert or vocabulary, or whole on all ranks), linear states (split by head, one
slot per session, and those that the prefix cache keeps), latents (in pages, the same on every rank), a step's logits
and activations, captured CUDA graphs, the CUDA context with the collectives' buffers, and a margin for the allocator.
"""

from dataclasses import dataclass
from typing import Literal

from planner.cards import Card
from planner.counts import weight_bytes
from planner.model import Model
from workers import memory
from workers.memory import GIB, GRAPH_BYTES, MARGIN_SHARE
from workers.sizes import PREFILL_STEP_TOKENS, staging

# Assumed: CUDA context, library workspaces and loaded kernels, and the collectives' channels.
CONTEXT_BYTES = 3 * GIB // 2

Binds = Literal["weights", "slots", "pages"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The setup of a worker.

    tp: its number of cards. context, mean_length: tokens of its longest and of its mean session. sessions: its number
    of slots; None for as many as fit. step_tokens, page_size: tokens of a step and of a page. mtp: whether it loads the
    MTP layers. kept_states: states that the prefix cache may keep on the device; None for as many as slots. host_bytes:
    the worker's host memory that the prefix cache may use.
    """

    tp: int
    context: int
    mean_length: int
    sessions: int | None = None
    step_tokens: int = PREFILL_STEP_TOKENS
    page_size: int = 64
    mtp: bool = False
    kept_states: int | None = None
    host_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one card by kind; they add up to `card`. unused: what is left; below 0, what is missing."""

    card: int
    weights: int
    states: int
    kept: int
    latents: int
    logits: int
    activations: int
    graphs: int
    context: int
    margin: int
    unused: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """The number of sessions that one worker holds at once.

    slots: as configured, or as many as fit in balance with the pages. kept_states: states of the prefix cache. pages:
    as many as fit beside the slots. by_slots: sessions whose states would fit if latents took no memory; by_pages:
    sessions of mean length whose latents fit in the pages. most: sessions with the best split of memory between slots
    and pages. fits: sessions with these slots. binds: what limits `fits`; without configured slots, what takes most of
    a session's memory. longest_fits: whether the pages hold one session of full context. kept_on_host: sessions of mean
    length, each with the state at its end, that fit in host memory.
    """

    slots: int
    kept_states: int
    pages: int
    page_size: int
    by_slots: int
    by_pages: int
    most: int
    fits: int
    binds: Binds
    longest_fits: bool
    kept_on_host: int


def page_bytes(model: Model, layout: Layout) -> int:
    """Bytes of one page of latents over all MLA layers, which every rank holds."""
    return layout.page_size * model.latent_bytes(layout.mtp)


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that this many tokens take."""
    return -(-tokens // page_size)


def logit_bytes(model: Model) -> int:
    """Bytes of one sequence's logits, counted as a worker does."""
    return memory.logit_bytes(model.config)


def activation_bytes(model: Model, layout: Layout) -> int:
    """Bytes that a worker reserves for a step's activations and for snapshots in transfer."""
    staged = 2 * staging(model.config, layout.tp, layout.context).budget
    return memory.activation_bytes(model.config, layout.tp, layout.step_tokens, layout.context) + staged


def graph_bytes(model: Model, layout: Layout) -> int:
    """Bytes of captured CUDA graphs and of the state slot that a worker reserves for them."""
    return GRAPH_BYTES + model.state_bytes(layout.tp)


def slot_bytes(model: Model, layout: Layout) -> int:
    """Bytes of a slot on each card: its share of the state, its logits, and a kept state if there is one per slot."""
    return (2 if layout.kept_states is None else 1) * model.state_bytes(layout.tp) + logit_bytes(model)


def session_bytes(model: Model, layout: Layout) -> int:
    """Bytes of a session of mean length on each card: its slot and its pages."""
    return slot_bytes(model, layout) + pages_of(layout.mean_length, layout.page_size) * page_bytes(model, layout)


def free_bytes(model: Model, card: Card, layout: Layout) -> int:
    """Bytes of a card that are left for sessions; below 0, the worker can't start."""
    margin = int(card.memory * MARGIN_SHARE)
    weights = sum(weight_bytes(model, layout.mtp, layout.tp).values())
    taken = margin + weights + activation_bytes(model, layout) + graph_bytes(model, layout) + CONTEXT_BYTES
    return card.memory - taken - (layout.kept_states or 0) * model.state_bytes(layout.tp)


def capacity(model: Model, card: Card, layout: Layout) -> Capacity:
    """How many sessions fit, and whether slots or pages prevent more.

    The number of slots S is a setting and pages take the rest of memory: (free - S slot) / page. Without the setting S
    is free / session, so that slots and pages run out together.
    """
    free = max(0, free_bytes(model, card, layout))
    slot = slot_bytes(model, layout)
    by_slots, most = free // slot, free // session_bytes(model, layout)
    slots = most if layout.sessions is None else layout.sessions
    pages = max(0, free - slots * slot) // page_bytes(model, layout)
    by_pages = pages // pages_of(layout.mean_length, layout.page_size)
    fits = max(0, min(slots, by_slots, by_pages))
    binds: Binds = "slots" if slots > by_slots or slots <= by_pages else "pages"
    if layout.sessions is None and session_bytes(model, layout) > 2 * slot:
        binds = "pages"
    return Capacity(
        slots=slots,
        kept_states=slots if layout.kept_states is None else layout.kept_states,
        pages=pages,
        page_size=layout.page_size,
        by_slots=by_slots,
        by_pages=by_pages,
        most=most,
        fits=fits,
        binds=binds if by_slots else "weights",
        longest_fits=pages >= pages_of(layout.context, layout.page_size),
        kept_on_host=layout.host_bytes // host_bytes(model, layout),
    )


def host_bytes(model: Model, layout: Layout) -> int:
    """Bytes of host memory that a kept session of mean length takes, over all ranks."""
    return model.state_bytes(1) + layout.mean_length * model.latent_bytes(layout.mtp)


def enough(held: Capacity, layout: Layout) -> bool:
    """Whether all requested sessions fit (one if no number is given), one of them with full context."""
    return held.fits >= (layout.sessions or 1) and held.longest_fits


def mean_length_for(model: Model, card: Card, layout: Layout, sessions: int) -> int:
    """The largest mean length in tokens with which `sessions` sessions fit; 0 if not even their states fit."""
    left = free_bytes(model, card, layout) - sessions * slot_bytes(model, layout)
    return max(0, left // page_bytes(model, layout) // sessions * layout.page_size)


def divide(model: Model, card: Card, layout: Layout, held: Capacity) -> Memory:
    """The card's bytes by kind, with the slots, kept states and pages of `held`."""
    states, logits = held.slots * model.state_bytes(layout.tp), held.slots * logit_bytes(model)
    kept, latents = held.kept_states * model.state_bytes(layout.tp), held.pages * page_bytes(model, layout)
    slots = held.slots * slot_bytes(model, layout)
    return Memory(
        card=card.memory,
        weights=sum(weight_bytes(model, layout.mtp, layout.tp).values()),
        states=states,
        kept=kept,
        latents=latents,
        logits=logits,
        activations=activation_bytes(model, layout),
        graphs=graph_bytes(model, layout),
        context=CONTEXT_BYTES,
        margin=int(card.memory * MARGIN_SHARE),
        unused=free_bytes(model, card, layout) - slots - latents,
    )
