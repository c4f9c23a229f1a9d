"""Computes how many workers a pool needs to keep its targets, by prediction. Pure: figures in, a number out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.relay.costs import Costs
from wire.protocol import Load, WorkerInfo

# A pool shrinks to where it would keep its targets under a load that is greater by the inverse of this: between that
# and its load now nothing changes.
_SHRINK_TO = 0.85
# However near one sequence's step comes to the inter-token target, this share of the target is left for more of them.
_LEAST_ROOM = 0.2
# Prompts wait at least this share of the time they take, however short of time their target leaves them.
_LEAST_WAIT = 0.1
# So that a sum that is a whole number but for its last digits asks for no further worker.
_DIGITS = 1e-6
_OVER_S = 5.0


@dataclass(frozen=True, slots=True)
class Goals:
    """The targets of a pool.

    busy: the share of its slots, of its pages, and of its time for prompts, that a worker has in use. first_token_s:
    within this time a prompt is to be computed, those before it included. attained: the share of prompts of which that
    is predicted.
    """

    busy: float
    first_token_s: float
    attained: float


@dataclass(frozen=True, slots=True)
class Asked:
    """The load of one worker.

    held: the share of its slots or of its pages in use, whichever is fuller. decoding: how many workers its running
    sequences would need to have their steps within the inter-token target. prompts: seconds of prompts that came to it,
    a second. prompt_s: seconds of a mean prompt, 0 if none came. waiting_s: seconds of the prompts that wait there.
    """

    held: float = 0.0
    decoding: float = 0.0
    prompts: float = 0.0
    prompt_s: float = 0.0
    waiting_s: float = 0.0


class PromptRate:
    """The rate at which prompts reached a worker over the last seconds."""

    def __init__(self) -> None:
        self._at, self._prompts, self._tokens = 0.0, 0, 0
        self._found = (0.0, 0.0)

    def of(self, prompts: int, tokens: int, now: float) -> tuple[float, float]:
        """Prompt tokens a second, and those of a mean prompt. prompts, tokens: computed since the worker's start."""
        if now - self._at >= _OVER_S:
            new, more = prompts - self._prompts, tokens - self._tokens
            self._found = (more / (now - self._at), more / new if new else 0.0) if self._at else (0.0, 0.0)
            self._at, self._prompts, self._tokens = now, prompts, tokens
        return self._found


def asked(info: WorkerInfo, load: Load, costs: Costs, rate: tuple[float, float]) -> Asked:
    """The load of a worker by its figures. rate: as `PromptRate.of` returns it."""
    slots = (info.slots - load.free_slots + load.queued) / info.slots
    used = info.pages - load.free_pages
    token_s = load.token_s or costs.token_s
    decoding = 0.0
    if load.running and load.decode_s:
        tokens = used * info.page_size
        scale = load.decode_s / costs.decode_s(round(load.decode_rows) or load.running, tokens)
        room = max(costs.itl_s - scale * costs.step_s, _LEAST_ROOM * costs.itl_s)
        decoding = scale * (costs.decode_s(load.running, tokens) - costs.step_s) / room
    tokens_s, prompt = rate
    return Asked(
        held=max(slots, used / info.pages),
        decoding=decoding,
        prompts=tokens_s * token_s,
        prompt_s=prompt * token_s,
        waiting_s=load.queued_tokens * token_s,
    )


def attainment(workers: int, prompts: float, prompt_s: float, first_token_s: float) -> float:
    """The share of prompts that are computed in time, as predicted.

    prompts: seconds of prompts that come in a second. The prediction is that of a queue with so many servers, arrivals
    at random times and prompts of exponentially distributed lengths (Erlang's C).
    """
    if prompts <= 0:
        return 1.0
    if prompts >= workers:
        return 0.0
    blocked = 1.0  # Erlang's B, from no server up
    for n in range(1, workers + 1):
        blocked = prompts * blocked / (n + prompts * blocked)
    waits = blocked / (1 - prompts / workers * (1 - blocked))
    left_s = max(first_token_s - prompt_s, _LEAST_WAIT * prompt_s)
    return 1.0 - waits * math.exp(-(workers - prompts) * left_s / prompt_s)


def wanted(pool: Sequence[Asked], now: int, goals: Goals) -> int:
    """The number of workers that a pool needs for its load, at least 1. now: the present number.

    A pool grows at once, and shrinks only to where it would keep its targets under more than its load: what makes it
    grow never makes it shrink again, so that a load at the edge moves nothing.
    """
    grown = _needed(pool, 1.0, goals)
    return grown if grown >= now else min(now, _needed(pool, 1 / _SHRINK_TO, goals))


def _needed(pool: Sequence[Asked], times: float, goals: Goals) -> int:
    """The number of workers for `times` the present load."""
    prompts = times * sum(a.prompts for a in pool)
    rate = sum(a.prompts / a.prompt_s for a in pool if a.prompt_s)
    sums = (
        times * sum(a.held for a in pool) / goals.busy,
        times * sum(a.decoding for a in pool),
        times * sum(a.waiting_s for a in pool) / goals.first_token_s,
        prompts / goals.busy,
    )
    workers = max(1, *(math.ceil(total - _DIGITS) for total in sums))
    if rate:
        prompt_s = prompts / (times * rate)
        while attainment(workers, prompts, prompt_s, goals.first_token_s) < goals.attained:
            workers += 1
    return workers
