"""The shortest time of a step: its bytes, FLOPs and exchanges divided by the card's rates.

The time is a lower limit: it assumes no gaps between kernels, evenly chosen experts, and kernels that move their bytes
at the rate of a large copy. `fraction_of_limit` says how close a measured step comes to it.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from planner.cards import Card
from planner.model import Model
from planner.work import Step, Work, work

Bound = Literal["bandwidth", "compute", "exchange"]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step on one worker: reading memory, computing, exchanging between its cards.

    Memory and compute overlap, exchanges do not: `seconds` = max(memory_s, compute_s) + exchange_s.
    """

    memory_s: float
    compute_s: float
    exchange_s: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return max(self.memory_s, self.compute_s) + self.exchange_s

    @property
    def bound(self) -> Bound:
        """The largest of the three parts, which limits the step."""
        if self.exchange_s > max(self.memory_s, self.compute_s):
            return "exchange"
        return "bandwidth" if self.memory_s >= self.compute_s else "compute"


@dataclass(frozen=True, slots=True)
class Prefill:
    """The limit of equal prompts on one worker.

    new_tokens, past_tokens: of a prompt, to compute and kept. seconds: time of one prompt alone; last_chunk_s: of its
    last step. tokens_per_s: rate of a stream of prompts that fills the steps. bound: what limits its slowest step.
    """

    new_tokens: int
    past_tokens: int
    seconds: float
    last_chunk_s: float
    tokens_per_s: float
    bound: Bound


def reduce_seconds(card: Card, tp: int, size: float) -> float:
    """Seconds of an all-reduce of `size` bytes among tp cards: latency, and 2 (tp-1)/tp of the bytes over each link."""
    return 0.0 if tp == 1 else card.link_latency + 2 * (tp - 1) / tp * size / card.link_bandwidth


def gather_seconds(card: Card, tp: int, size: float) -> float:
    """Seconds of an all-gather that leaves `size` bytes on each of tp cards."""
    return 0.0 if tp == 1 else card.link_latency + (tp - 1) / tp * size / card.link_bandwidth


def time_of(card: Card, done: Work, tp: int) -> StepTime:
    """The shortest time of one rank's work."""
    gather = gather_seconds(card, tp, done.gather_bytes) if done.gather_bytes else 0.0
    return StepTime(
        memory_s=done.bytes / card.bandwidth,
        compute_s=done.bf16_flops / card.bf16_flops + done.fp8_flops / card.fp8_flops,
        exchange_s=done.reduces * reduce_seconds(card, tp, done.reduce_bytes) + gather,
    )


@lru_cache(maxsize=4096)
def step_time(model: Model, card: Card, tp: int, step: Step) -> StepTime:
    """The shortest time of a step on tp cards."""
    return time_of(card, work(model, step, tp), tp)


def decode_time(model: Model, card: Card, tp: int, batch: int, context: int) -> StepTime:
    """The shortest time of a decode step of `batch` sequences, with `context` tokens each on average."""
    return step_time(model, card, tp, Step(batch, 1, context, batch))


def decode_limit(model: Model, card: Card, tp: int, batch: int, context: int) -> float:
    """The largest rate of such decode steps, in tokens per second over all sequences."""
    return batch / decode_time(model, card, tp, batch, context).seconds


def fraction_of_limit(measured_s: float, limit_s: float) -> float:
    """The shortest time over the measured time: 1 is the limit. ValueError if a time is not above 0."""
    if measured_s <= 0 or limit_s <= 0:
        raise ValueError(f"times must be above 0 s, got {measured_s} measured against a limit of {limit_s}")
    return limit_s / measured_s


def bandwidth_fraction(model: Model, card: Card, tp: int, step: Step, measured_s: float) -> float:
    """The share of the card's reachable bandwidth that a measured step used, by the bytes it must move at least."""
    return fraction_of_limit(measured_s, step_time(model, card, tp, step).memory_s)


def flops_fraction(model: Model, card: Card, tp: int, step: Step, measured_s: float) -> float:
    """The share of the card's reachable FLOP/s that a measured step used, by the FLOPs that it must do at least."""
    return fraction_of_limit(measured_s, step_time(model, card, tp, step).compute_s)


def prefill(model: Model, card: Card, tp: int, step_tokens: int, new: int, past: int) -> Prefill:
    """The shortest time of prompts with `new` tokens to compute after `past` kept ones, in steps of `step_tokens`.

    Prompts shorter than a step share steps, so a stream of them is faster than one prompt alone.
    """
    together = max(1, step_tokens // new)
    alone = [step_time(model, card, tp, step) for step in _chunks(1, new, past, step_tokens)]
    shared = [step_time(model, card, tp, step) for step in _chunks(together, new, past, step_tokens)]
    slowest = max(shared, key=lambda time: time.seconds)
    return Prefill(
        new_tokens=new,
        past_tokens=past,
        seconds=sum(time.seconds for time in alone),
        last_chunk_s=alone[-1].seconds,
        tokens_per_s=together * new / sum(time.seconds for time in shared),
        bound=slowest.bound,
    )


def _chunks(sequences: int, new: int, past: int, step_tokens: int) -> list[Step]:
    starts = range(0, new, step_tokens)
    return [
        Step(sequences, min(step_tokens, new - start), past + start, sequences if start + step_tokens >= new else 0)
        for start in starts
    ]
