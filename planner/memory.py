"""Divides one card's memory, and counts the sessions that the rest of it holds.

Every byte is one of: weights (split by head, expert or vocabulary, or held by all ranks), linear state (split by
head, one slot a session, and those that the prefix cache keeps), latents (pages, the same on every rank), logits and
activations of a step, captured CUDA graphs, the CUDA context with the collectives' buffers, and a margin for the
allocator.
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
    """The setup of a worker: tp cards; tokens of its longest and of its mean session.

    Tokens of a step and of a page.

    sessions: state slots, None for as many as fit. mtp: whether the MTP layers are loaded. kept_states, host_bytes:
    what the prefix cache may keep: states beside those of sessions, None for as many as slots, and bytes of a worker's
    host memory.
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
    """Bytes of one card by kind; they add up to `card`, with `unused` below 0 by what is missing."""

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
    """Sessions one worker holds at once.

    slots: as configured, or as many as fit in balance with the pages. kept_states: beside them, of the prefix cache.
    pages: all that the slots leave room for.
    by_slots: sessions whose states fit, were latents nothing; by_pages: sessions of mean length in the pages.
    most: sessions at the best split of memory between slots and pages. fits: sessions held with these slots.
    binds: what keeps `fits` from growing, or takes most of a session's memory if no slots are set.
    longest_fits: whether one session of full context finds its pages. kept_on_host: sessions of mean length that host
    memory keeps, each with the state at its end.
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
    """Bytes of one latent page over all MLA layers, on every rank."""
    return layout.page_size * model.latent_bytes(layout.mtp)


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that this many tokens take."""
    return -(-tokens // page_size)


def logit_bytes(model: Model) -> int:
    """Bytes of one sequence's logits, as a worker counts them."""
    return memory.logit_bytes(model.config)


def activation_bytes(model: Model, layout: Layout) -> int:
    """Bytes of a step's activations and of snapshots on their way, as a worker keeps them free."""
    staged = 2 * staging(model.config, layout.tp, layout.context).budget
    return memory.activation_bytes(model.config, layout.tp, layout.step_tokens, layout.context) + staged


def graph_bytes(model: Model, layout: Layout) -> int:
    """Bytes of captured steps, with the slot that a worker leaves to them."""
    return GRAPH_BYTES + model.state_bytes(layout.tp)


def slot_bytes(model: Model, layout: Layout) -> int:
    """Bytes of a slot on every card: its state's share, its logits, and a kept state if each slot brings one."""
    return (2 if layout.kept_states is None else 1) * model.state_bytes(layout.tp) + logit_bytes(model)


def session_bytes(model: Model, layout: Layout) -> int:
    """Bytes of a session of mean length on every card: its slot and its pages."""
    return slot_bytes(model, layout) + pages_of(layout.mean_length, layout.page_size) * page_bytes(model, layout)


def free_bytes(model: Model, card: Card, layout: Layout) -> int:
    """Bytes of a card that are left for sessions; below 0 the worker does not start."""
    margin = int(card.memory * MARGIN_SHARE)
    weights = sum(weight_bytes(model, layout.mtp, layout.tp).values())
    taken = margin + weights + activation_bytes(model, layout) + graph_bytes(model, layout) + CONTEXT_BYTES
    return card.memory - taken - (layout.kept_states or 0) * model.state_bytes(layout.tp)


def capacity(model: Model, card: Card, layout: Layout) -> Capacity:
    """How many sessions fit, and whether slots or pages prevent more.

    Slots are a setting and pages take the rest of memory, so with S slots a card holds
    (free - S slot) / page pages. Without a setting S is free / session, where both run out together.
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
    """The longest mean length in tokens at which so many sessions fit; 0 if not even their states fit."""
    left = free_bytes(model, card, layout) - sessions * slot_bytes(model, layout)
    return max(0, left // page_bytes(model, layout) // sessions * layout.page_size)


def divide(model: Model, card: Card, layout: Layout, held: Capacity) -> Memory:
    """The card's bytes by kind, with this number of slots and pages."""
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
