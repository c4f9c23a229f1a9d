"""The time to move snapshots between the pools, and the size of each pool for a given traffic."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from planner.cards import Card
from planner.errors import PlanError
from planner.memory import Binds, Capacity, Layout, capacity
from planner.model import Model
from planner.speed import Prefill, StepTime, decode_time, gather_seconds, prefill

# A pool's size is chosen so that the mean load is this share of its capacity; the rest is for bursts.
TARGET_LOAD = 0.8


@dataclass(frozen=True, slots=True)
class Traffic:
    """A traffic: requests per second, mean tokens of prompt and answer.

    hit_rate: the share of a prompt, 0 to 1, that a kept snapshot covers.
    """

    requests_per_s: float
    prompt_tokens: int
    output_tokens: int
    hit_rate: float = 0.0

    @property
    def past_tokens(self) -> int:
        """Prompt tokens that a kept snapshot covers; the last token is always computed."""
        return min(int(self.prompt_tokens * self.hit_rate), self.prompt_tokens - 1)

    @property
    def new_tokens(self) -> int:
        """Prompt tokens to compute."""
        return self.prompt_tokens - self.past_tokens


@dataclass(frozen=True, slots=True)
class Handoff:
    """The hand-off of one snapshot of `tokens` tokens to another worker.

    card_bytes: bytes that each rank sends: its heads' state and its 1/tp of the latents. network: bytes/s of one card.
    gather_s: seconds in which the receiving ranks share the latents. seconds: of the whole hand-off if it began after
    the prompt. exposed_s: seconds that remain after the last chunk, since the rest is sent while later chunks are
    computed.
    """

    tokens: int
    snapshot_bytes: int
    card_bytes: float
    network: float
    gather_s: float
    seconds: float
    exposed_s: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """The sizes of both pools for a traffic.

    prefill_need, decode_need: workers that the traffic keeps busy; ratio: the first over the second. prefill_workers,
    decode_workers: workers at `TARGET_LOAD`, rounded up. batch: sequences that a decode worker runs at this load, in
    steps that take `step`. held: the most sequences it can run; binds: what prevents more. ttft_s: time to the first
    token in an idle fleet. network_share: share of the prefill workers' network that hand-offs use.
    """

    traffic: Traffic
    prefill: Prefill
    prefill_need: float
    decode_need: float
    ratio: float
    prefill_workers: int
    decode_workers: int
    batch: int
    held: int
    binds: Binds | Literal["step tokens"]
    step: StepTime
    ttft_s: float
    network_share: float


def snapshot_bytes(model: Model, tokens: int) -> int:
    """Bytes of a sequence's state and latents, each counted once."""
    return model.state_bytes() + tokens * model.latent_bytes()


def handoff(model: Model, card: Card, layout: Layout, network: float, prompt: Prefill) -> Handoff:
    """The time to move a prompt's snapshot, if all ranks send at once. network: bytes/s of one card."""
    tokens = prompt.new_tokens + prompt.past_tokens
    per_card = snapshot_bytes(model, tokens) / layout.tp
    gather = gather_seconds(card, layout.tp, tokens * model.latent_bytes())
    last = (prompt.new_tokens - 1) % layout.step_tokens + 1
    tail = snapshot_bytes(model, last) / layout.tp / network
    behind = per_card / network - (prompt.seconds - prompt.last_chunk_s)
    return Handoff(
        tokens=tokens,
        snapshot_bytes=snapshot_bytes(model, tokens),
        card_bytes=per_card,
        network=network,
        gather_s=gather,
        seconds=per_card / network + gather,
        exposed_s=max(tail, behind) + gather,
    )


def settled_batch(model: Model, card: Card, tp: int, tokens_per_s: float, context: int, most: int) -> int:
    """The smallest batch, up to `most`, that reaches `tokens_per_s`. A worker under that load settles at it."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if middle / decode_time(model, card, tp, middle, context).seconds >= tokens_per_s:
            high = middle
        else:
            low = middle + 1
    return low


def decode_batch(held: Capacity, layout: Layout) -> int:
    """The number of sequences in a decode step: all that the worker holds, at most a step's token budget."""
    return min(held.fits, layout.step_tokens)


def fleet(model: Model, card: Card, layout: Layout, network: float, traffic: Traffic) -> Fleet:
    """The number of workers of each pool. PlanError if a decode worker can't hold one session of the traffic.

    Prefill workers: the traffic's prompt tokens/s over those of one worker. Decode workers: the traffic's output
    tokens/s over those of one worker at its largest batch. A session has prompt + output/2 tokens on average.
    """
    mean = traffic.prompt_tokens + math.ceil(traffic.output_tokens / 2)
    held = capacity(model, card, replace(layout, mean_length=mean))
    most = decode_batch(held, layout)
    if not most:
        raise PlanError(f"--requests-per-s: a decode worker holds no session of {mean} tokens")
    prompt = prefill(model, card, layout.tp, layout.step_tokens, traffic.new_tokens, traffic.past_tokens)
    wanted = traffic.requests_per_s * traffic.output_tokens
    prefill_need = traffic.requests_per_s * traffic.new_tokens / prompt.tokens_per_s
    decode_need = wanted * decode_time(model, card, layout.tp, most, mean).seconds / most
    prefill_workers = max(1, math.ceil(prefill_need / TARGET_LOAD))
    decode_workers = max(1, math.ceil(decode_need / TARGET_LOAD))
    batch = settled_batch(model, card, layout.tp, wanted / decode_workers, mean, most)
    step = decode_time(model, card, layout.tp, batch, mean)
    moved = handoff(model, card, layout, network, prompt)
    return Fleet(
        traffic=traffic,
        prefill=prompt,
        prefill_need=prefill_need,
        decode_need=decode_need,
        ratio=prefill_need / decode_need,
        prefill_workers=prefill_workers,
        decode_workers=decode_workers,
        batch=batch,
        held=most,
        binds=held.binds if most == held.fits else "step tokens",
        step=step,
        ttft_s=prompt.seconds + moved.exposed_s + step.seconds,
        network_share=traffic.requests_per_s * moved.card_bytes / network / prefill_workers,
    )
