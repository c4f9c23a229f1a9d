"""Answers a question to the planner with all its figures."""

from dataclasses import dataclass

from planner.cards import Card
from planner.counts import active_parameters, checkpoint_bytes, main_parameters, parameters, weight_bytes
from planner.memory import Capacity, Layout, Memory, capacity, divide, enough
from planner.model import Format, Model
from planner.question import Question, check
from planner.speculation import Speculated, speculated
from planner.speed import Bound, Prefill, decode_time, prefill
from planner.tensors import Kind
from planner.traffic import Fleet, Handoff, decode_batch, fleet, handoff
from planner.words import say
from planner.work import Step, work

_BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True, slots=True)
class Size:
    """The model's size: parameters and bytes, by kind and in total.

    main_parameters: without the MTP layers. weights: bytes of all weights of the release; weights_per_card: of the
    weights that one rank loads. checkpoint_bytes: of the release's files. state_bytes: of one sequence's state over all
    ranks. latent_bytes: of one token's latents on one rank.
    """

    parameters: dict[Kind, int]
    main_parameters: int
    active_parameters: int
    weights: dict[Kind, int]
    weights_per_card: dict[Kind, int]
    checkpoint_bytes: int
    state_bytes: int
    latent_bytes: int


@dataclass(frozen=True, slots=True)
class Decode:
    """The limit of a decode step with one batch size.

    batch: sequences; context: tokens of each. Bytes are those that one card moves. tokens_per_s: of the whole worker;
    user_tokens_per_s: of each sequence. speculated: the step with drafts, if the MTP layer is loaded.
    """

    batch: int
    context: int
    weights_bytes: float
    states_bytes: float
    latents_bytes: float
    memory_s: float
    compute_s: float
    exchange_s: float
    step_s: float
    bound: Bound
    tokens_per_s: float
    user_tokens_per_s: float
    speculated: Speculated | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer to a question. If not even one session fits, the fields about speed are empty or None.

    fits: whether all requested sessions fit on these cards, and one of them also at full context. words: remarks in
    sentences.
    """

    model: str
    dtype: Format
    card: Card
    layout: Layout
    size: Size
    memory: Memory
    capacity: Capacity
    decode: tuple[Decode, ...]
    prefill: Prefill | None
    handoff: Handoff | None
    fleet: Fleet | None
    fits: bool
    words: tuple[str, ...]


def make_plan(question: Question) -> Plan:
    """Make the plan; PlanError if the question can't be answered."""
    check(question)
    model, card, layout = question.model, question.card, question.layout
    held = capacity(model, card, layout)
    prompt = moved = pools = None
    if held.fits:
        prompt = prefill(model, card, layout.tp, layout.step_tokens, question.prompt, 0)
        moved = handoff(model, card, layout, question.network, prompt)
        if question.traffic:
            pools = fleet(model, card, layout, question.network, question.traffic)
    return Plan(
        model=model.name,
        dtype=model.weights,
        card=card,
        layout=layout,
        size=size_of(model, layout),
        memory=divide(model, card, layout, held),
        capacity=held,
        decode=tuple(_decode(question, batch) for batch in _batches(held, layout)),
        prefill=prompt,
        handoff=moved,
        fleet=pools,
        fits=enough(held, layout),
        words=say(question, held, prompt, pools),
    )


def size_of(model: Model, layout: Layout) -> Size:
    """The model's size, in total and on each card of the layout."""
    return Size(
        parameters=parameters(model),
        main_parameters=main_parameters(model),
        active_parameters=active_parameters(model),
        weights=weight_bytes(model, model.has_mtp),
        weights_per_card=weight_bytes(model, layout.mtp, layout.tp),
        checkpoint_bytes=checkpoint_bytes(model),
        state_bytes=model.state_bytes(),
        latent_bytes=model.latent_bytes(layout.mtp),
    )


def _batches(held: Capacity, layout: Layout) -> list[int]:
    most = decode_batch(held, layout)
    return [*(batch for batch in _BATCHES if batch < most), *([most] if most else [])]


def _decode(question: Question, batch: int) -> Decode:
    model, layout = question.model, question.layout
    moved = work(model, Step(batch, 1, layout.mean_length, batch), layout.tp)
    time = decode_time(model, question.card, layout.tp, batch, layout.mean_length)
    return Decode(
        batch=batch,
        context=layout.mean_length,
        weights_bytes=moved.weights,
        states_bytes=moved.states,
        latents_bytes=moved.latents,
        memory_s=time.memory_s,
        compute_s=time.compute_s,
        exchange_s=time.exchange_s,
        step_s=time.seconds,
        bound=time.bound,
        tokens_per_s=batch / time.seconds,
        user_tokens_per_s=1 / time.seconds,
        speculated=speculated(model, question.card, layout.tp, batch, layout.mean_length) if layout.mtp else None,
    )
