"""Chooses the workers that serve a request. Pure: takes a fleet and a need, returns a plan or a refusal.

Filter: workers that can hold the sequence, exchange its snapshot and reach each other. Score: the predicted seconds to
the first token plus the price of places. Pick: the lowest score; the need's salt decides between equal ones.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from router.relay.costs import Costs
from router.relay.fleet import Fleet, Group, Standing, identity, pressure
from wire.protocol import WorkerInfo

# A decode worker computes a prompt only if it is sooner by these seconds plus this share of the time, in proportion to
# the part of the prompt that it does not keep. Predictions are wrong by about this much, and prompts belong to the
# prefill pool.
_DOUBT_S, _DOUBT_SHARE = 0.05, 0.25
_NOBODY: Sequence[Standing] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """The longest prefix of a prompt that a worker keeps.

    device: whether it is on the device, not only in slower memory.
    """

    position: int
    device: bool


@dataclass(frozen=True, slots=True)
class Need:
    """What a sequence needs of its workers.

    salt: decides between equal scores, so that several routers do not choose the same worker. held: by worker id, the
    part of the prompt that the worker keeps.
    """

    prompt_tokens: int
    max_tokens: int
    salt: int = 0
    held: Mapping[str, Held] = field(default_factory=dict)

    def begin(self, worker_id: str) -> int:
        """Tokens that the worker need not compute, because it keeps them."""
        held = self.held.get(worker_id)
        return held.position if held is not None else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The workers of a sequence. Without `prefill` one worker of either pool, `decode`, computes prompt and answer.

    waits: no worker has room now, so the sequence waits at one of the two. source, kept_tokens: the worker whose kept
    snapshot the prompt continues from, and the snapshot's tokens; None to continue from a snapshot of its own. work:
    prompt tokens to compute. ahead_s: seconds of prompts before this one at the worker that computes it. first_token_s:
    the predicted time to the first token, ahead_s included. foreign_tokens: of how many of its first tokens workers
    keep a snapshot that does not fit these.
    """

    prefill: WorkerInfo | None
    decode: WorkerInfo
    waits: bool = field(default=False, compare=False)
    source: WorkerInfo | None = None
    kept_tokens: int = 0
    work: int = field(default=0, compare=False)
    first_token_s: float = field(default=0.0, compare=False)
    ahead_s: float = field(default=0.0, compare=False)
    foreign_tokens: int = field(default=0, compare=False)


NoPlanReason = Literal["no_worker", "mismatch", "too_long"]


@dataclass(frozen=True, slots=True)
class NoPlan:
    """The reason why there is no plan."""

    reason: NoPlanReason
    message: str


def choose(fleet: Fleet, need: Need, *, split: bool) -> Plan | NoPlan:
    """The plan with the lowest predicted time to the first token, prices of places included.

    A plan is a prefill and a decode worker, or one worker of either pool that computes prompt and answer: without
    `split`, where one of the pools has no live worker, or where that is sooner. A pair must agree on page size, layout
    and weights.
    """
    split = split and any(g.prefills for g in fleet.groups) and any(g.decodes for g in fleet.groups)
    best: tuple[float, Plan] | None = None
    for group in fleet.groups:
        found = _Search(fleet.costs, need, group, split=split).best()
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return _with_foreign(best[1], fleet, need) if best is not None else _no_plan(fleet, need, split)


def _with_foreign(plan: Plan, fleet: Fleet, need: Need) -> Plan:
    """The plan, with what is kept of the prompt at workers whose snapshots don't fit."""
    if len(fleet.groups) == 1 or not need.held:
        return plan
    own = identity(plan.decode)
    others = (s for s in (*fleet.prefills, *fleet.decodes) if s.identity != own)
    return replace(plan, foreign_tokens=max((need.begin(s.worker_id) for s in others), default=0))


class _Search:
    """The search for one request's best plan in one group of workers."""

    def __init__(self, costs: Costs, need: Need, group: Group, *, split: bool) -> None:
        self._costs, self._need, self._group, self._split = costs, need, group, split
        self._tokens = need.prompt_tokens + need.max_tokens
        self._source = self._find_source()
        kept = need.begin(self._source.worker_id) if self._source is not None else 0
        # Weighted tokens to compute: by a worker that keeps nothing, after a pull, and by the prefix that a worker
        # keeps.
        self._all, self._rest = costs.work(0, need.prompt_tokens), costs.work(kept, need.prompt_tokens)
        # A snapshot below the source's device is read and checked there before it is sent.
        self._read_s = costs.moved_s(kept) if self._source and not need.held[self._source.worker_id].device else 0.0
        self._pull_s = costs.pull_s + self._read_s + costs.moved_s(kept) if self._source is not None else math.inf
        self._works: dict[int, float] = {}

    def best(self) -> tuple[float, Plan] | None:
        """The best plan and its score; None if the group has none."""
        if not self._split:
            alone_s, alone = self._alone((*self._group.decodes, *self._group.prefills), 0.0)
            return self._on_one(alone_s, alone) if alone is not None else None
        prefill_s, prefill = self._prefill()
        decode_s, decode = self._behind(prefill) if prefill is not None else (math.inf, None)
        if prefill is None or decode is None:
            # Where none is too small for it, all that could hand it on are cut off from those that could go on.
            alone_s, alone = self._alone(self._group.decodes, 0.0) if self._group.cut else (math.inf, None)
            return self._on_one(alone_s, alone) if alone is not None else None
        pool = self._group.decodes
        if decode.late or pressure(decode.state, self._need.prompt_tokens) > 1:
            pool += self._group.prefills
        alone_s, alone = self._alone(pool, _DOUBT_S)
        if alone is not None and alone_s < prefill_s + decode_s:
            return self._on_one(alone_s, alone)
        prompt = self._need.prompt_tokens
        waits = pressure(prefill.state, prompt) > 1 or pressure(decode.state, prompt) > 1
        return prefill_s + decode_s, self._plan(prefill, prefill, decode, waits)

    def _find_source(self) -> Standing | None:
        """The worker that keeps most of the prompt; of several, one that has it on the device."""
        need, best, found = self._need, (0, False), None
        if need.held:
            longest = max(held.position for held in need.held.values())
            for pool in (self._group.prefills, self._group.decodes):
                for s in pool:
                    held = need.held.get(s.worker_id)
                    if held is not None and (held.position, held.device) > best:
                        best, found = (held.position, held.device), s
                        if best == (longest, True):
                            return found
        return found

    def _prefill(self) -> tuple[float, Standing | None]:
        """The prefill worker that would compute the prompt soonest, and the seconds it takes."""
        prompt, get, own_s = self._need.prompt_tokens, self._need.held.get, self._own_s
        every, rest, pull_s = self._all, self._rest, self._pull_s
        best, found = math.inf, _NOBODY
        for s in self._group.within_reach:
            token_s = s.token_s
            held = get(s.worker_id)
            seconds = every * token_s if held is None else own_s(held, token_s)
            pulled = pull_s + rest * token_s
            seconds = s.queue_s + s.entry_s + (pulled if pulled < seconds else seconds) * s.held_up
            if seconds <= best and s.capacity > prompt:
                best, found = self._keep(best, found, seconds, s)
        return best, self._tied(found)

    def _behind(self, prefill: Standing) -> tuple[float, Standing | None]:
        """The decode worker that would continue soonest after it, and the extra seconds of the second token."""
        costs, get, tokens = self._costs, self._need.held.get, self._tokens
        prompt = self._need.prompt_tokens
        # Latents are sent while the prompt is computed; the state is sent last.
        overlapped = self._compute_s(prefill)
        cold_s = max(costs.state_s, costs.moved_s(prompt) - overlapped)
        best, found = math.inf, _NOBODY
        for s in self._group.decodes:
            held = get(s.worker_id)
            if held is None or cold_s == costs.state_s:
                seconds = s.answer_s + cold_s
            else:
                seconds = s.answer_s + max(costs.state_s, costs.moved_s(prompt - held.position) - overlapped)
            if seconds <= best and s.capacity >= tokens and not (s.cut and prefill.worker_id in s.cut):
                best, found = self._keep(best, found, seconds, s)
        return best, self._tied(found)

    def _alone(self, pool: Sequence[Standing], doubt_s: float) -> tuple[float, Standing | None]:
        """The worker of a pool that is soonest by itself. doubt_s: what a decode worker that keeps little must save."""
        tokens, get, own_s = self._tokens, self._need.held.get, self._own_s
        every, rest, pull_s, prompt = self._all, self._rest, self._pull_s, self._need.prompt_tokens
        best, found = math.inf, _NOBODY
        for s in pool:
            token_s = s.token_s
            held = get(s.worker_id)
            if held is None:
                seconds, known = every * token_s, 0.0
            else:
                seconds, known = own_s(held, token_s), held.position / prompt
            pulled = pull_s + rest * token_s
            if pulled < seconds:
                seconds, known = pulled, 0.0
            doubt = (doubt_s + _DOUBT_SHARE * seconds) * (1.0 - known) if doubt_s and not s.prefills else 0.0
            seconds = s.queue_s + s.answer_s + seconds * s.held_up + doubt
            if seconds <= best and s.capacity >= tokens:
                best, found = self._keep(best, found, seconds, s)
        return best, self._tied(found)

    def _on_one(self, seconds: float, decode: Standing) -> tuple[float, Plan]:
        return seconds, self._plan(None, decode, decode, pressure(decode.state, self._need.prompt_tokens) > 1)

    def _keep(
        self, best: float, found: Sequence[Standing], seconds: float, s: Standing
    ) -> tuple[float, Sequence[Standing]]:
        """Add the price of a candidate's pages, and keep the candidates with the lowest score."""
        seconds += s.pages_s(-(-(self._need.prompt_tokens + 1) // s.state.info.page_size))
        if seconds < best:
            return seconds, [s]
        return best, [*found, s] if seconds == best else found

    def _own_s(self, held: Held, token_s: float) -> float:
        """Seconds to compute the tokens that a worker does not keep, and to load those that it keeps in host memory."""
        work = self._works.get(held.position)
        if work is None:
            work = self._works[held.position] = self._costs.work(held.position, self._need.prompt_tokens)
        return work * token_s if held.device else work * token_s + self._costs.moved_s(held.position)

    def _pulled_s(self, s: Standing) -> float:
        """Seconds with a pull of another worker's kept snapshot; infinite if there is none."""
        if self._source is None or self._source is s:
            return math.inf
        missing = self._need.begin(self._source.worker_id) - self._need.begin(s.worker_id)
        if missing <= 0:
            return math.inf
        return self._costs.pull_s + self._read_s + self._costs.moved_s(missing) + self._rest * s.token_s

    def _alone_s(self, s: Standing) -> float:
        """Seconds on a decode worker without a pull."""
        held = self._need.held.get(s.worker_id)
        return self._all * s.token_s if held is None else self._own_s(held, s.token_s)

    def _compute_s(self, s: Standing) -> float:
        return min(self._alone_s(s), self._pulled_s(s))

    def _plan(self, prefill: Standing | None, computing: Standing, decode: Standing, waits: bool) -> Plan:
        need, source = self._need, self._source
        own = self._alone_s(computing)
        pulled = self._pulled_s(computing)
        begin, first = need.begin(computing.worker_id), computing.queue_s + min(own, pulled)
        info = prefill.state.info if prefill is not None else None
        if source is None or pulled >= own:
            work = need.prompt_tokens - begin
            return Plan(info, decode.state.info, waits, None, 0, work, first, computing.queue_s)
        kept = need.begin(source.worker_id)
        work = need.prompt_tokens - kept
        return Plan(info, decode.state.info, waits, source.state.info, kept, work, first, computing.queue_s)

    def _tied(self, found: Sequence[Standing]) -> Standing | None:
        if len(found) <= 1:
            return found[0] if found else None
        salt = self._need.salt & 0xFFFFFFFF
        return min(found, key=lambda s: zlib.crc32(s.worker_id.encode(), salt))


def _no_plan(fleet: Fleet, need: Need, split: bool) -> NoPlan:
    """Find the reason why no worker of the fleet is left."""
    if not fleet.groups:
        return NoPlan("no_worker", "no worker is live")
    pools = [fleet.decodes + fleet.prefills]
    if split:
        whole = [group for group in fleet.groups if group.decodes and group.prefills]
        if not whole:
            return NoPlan("mismatch", _differences(fleet.prefills[0].state.info, fleet.decodes[0].state.info))
        pools = [tuple(s for g in whole for s in g.decodes), tuple(s for g in whole for s in g.prefills)]
    longest = min(max(s.capacity for s in pool) for pool in pools)
    return NoPlan(
        "too_long",
        f"the prompt's {need.prompt_tokens} tokens and an answer of {need.max_tokens} exceed the {longest} tokens "
        "the workers have room for",
    )


def _differences(prefill: WorkerInfo, decode: WorkerInfo) -> str:
    names = ("page_size", "layout", "weights_id")
    parts = [
        f"{name} {a!r} and {b!r}"
        for name, a, b in zip(names, identity(prefill), identity(decode), strict=True)
        if a != b
    ]
    return (
        f"no prefill and decode worker fit together: {prefill.worker_id} and {decode.worker_id} "
        f"differ in {', '.join(parts)}"
    )
