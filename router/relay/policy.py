"""Which workers serve a request. Pure: a fleet and a need in, a plan or a refusal out.

Filter: workers that can hold the sequence, and whose snapshots fit together. Score: the predicted seconds to the first
token, and what places cost. Pick: the least; equals by the need's salt.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from router.relay.costs import Costs
from router.relay.fleet import Fleet, Standing, identity, pressure
from wire.protocol import WorkerInfo

# A prompt of which a decode worker keeps nothing is computed there only if that is sooner by so much: predictions are
# off by about this, and the prefill pool is there for prompts.
_DOUBT_S = 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """The longest beginning of a prompt that a worker keeps. device: it can be sent to others from there."""

    position: int
    device: bool


@dataclass(frozen=True, slots=True)
class Need:
    """What a sequence asks of a worker. `salt` decides between equals, so that routers do not herd.

    held: by worker id, what it keeps of the prompt.
    """

    prompt_tokens: int
    max_tokens: int
    salt: int = 0
    held: Mapping[str, Held] = field(default_factory=dict)

    def begin(self, worker_id: str) -> int:
        """Tokens that the worker need not compute."""
        held = self.held.get(worker_id)
        return held.position if held is not None else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a sequence goes. Without `prefill` the decode worker computes the prompt.

    waits: none has room for it now, so that it waits at one of the two. source, kept_tokens: whose kept snapshot the
    worker that computes the prompt is to begin from, and of how many tokens; None to begin from what it has itself.
    work: prompt tokens that are computed. first_token_s: the predicted time to the first token.
    """

    prefill: WorkerInfo | None
    decode: WorkerInfo
    waits: bool = field(default=False, compare=False)
    source: WorkerInfo | None = None
    kept_tokens: int = 0
    work: int = field(default=0, compare=False)
    first_token_s: float = field(default=0.0, compare=False)


NoPlanReason = Literal["no_decode_worker", "mismatch", "too_long"]


@dataclass(frozen=True, slots=True)
class NoPlan:
    """Why there is none."""

    reason: NoPlanReason
    message: str


def choose(fleet: Fleet, need: Need, *, split: bool) -> Plan | NoPlan:
    """The plan with the least predicted time to first token, prices of places included.

    A plan is a prefill and a decode worker, or a decode worker that computes the prompt itself: with `split` False,
    where no prefill worker lives, and where that is sooner. A pair must agree on ranks, layout and weights.
    """
    if not fleet.decodes:
        return NoPlan("no_decode_worker", "no decode worker is live")
    split = split and bool(fleet.prefills)
    tokens = need.prompt_tokens + need.max_tokens
    decodes = [s for s in fleet.decodes if s.capacity >= tokens]
    prefills = [s for s in fleet.prefills if s.capacity > need.prompt_tokens] if split else []
    best: tuple[float, Plan] | None = None
    for members in _groups(prefills, decodes):
        found = _Group(fleet.costs, need, *members, split=split).best()
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return best[1] if best is not None else _no_plan(fleet, need, split)


Members = tuple[list[Standing], list[Standing]]


def _groups(prefills: list[Standing], decodes: list[Standing]) -> Iterable[Members]:
    """Workers whose snapshots fit together; mostly all of them."""
    names = {s.identity for s in decodes}
    if len(names) == 1 and {s.identity for s in prefills} <= names:
        return [(prefills, decodes)]
    return [([s for s in prefills if s.identity == name], [s for s in decodes if s.identity == name]) for name in names]


class _Group:
    """One request and the workers of one identity that can hold it."""

    def __init__(
        self, costs: Costs, need: Need, prefills: list[Standing], decodes: list[Standing], *, split: bool
    ) -> None:
        self._costs, self._need, self._prefills, self._decodes, self._split = costs, need, prefills, decodes, split
        prompt = need.prompt_tokens
        there = [s for pool in (prefills, decodes) for s in pool if s.worker_id in need.held] if need.held else []
        on_device = [s for s in there if need.held[s.worker_id].device]
        self._source = max(on_device, key=lambda s: need.held[s.worker_id].position, default=None)
        # Of workers that keep nothing: either all is computed, or a pull comes first.
        self._all = costs.work(0, prompt)
        kept = need.begin(self._source.worker_id) if self._source is not None else 0
        self._pull_s, self._rest = costs.pull_s + costs.moved_s(kept), costs.work(kept, prompt)

    def best(self) -> tuple[float, Plan] | None:
        """The best plan and its score; None if the group has none."""
        if not self._split:
            return self._alone(0.0)
        if not self._prefills or not self._decodes:
            return None
        prefill_s, prefill = self._prefill()
        decode_s, decode = self._decode(prefill)
        pair = prefill_s + decode_s
        # What a plan without a hand-off must beat; steps and places of a decode worker cost the same in both.
        alone = self._alone(_DOUBT_S)
        if alone is not None and alone[0] < pair:
            return alone
        need = self._need
        waits = any(pressure(s.state, need.prompt_tokens) > 1 for s in (prefill, decode))
        return pair, self._plan(prefill, prefill, decode, waits)

    def _prefill(self) -> tuple[float, Standing]:
        """The prefill worker that has the prompt computed soonest, and the seconds until then."""
        need, every, rest, pull_s = self._need, self._all, self._rest, self._pull_s
        held, prompt = need.held, need.prompt_tokens
        pulls = self._source is not None
        best = math.inf
        found: list[Standing] = []
        for s in self._prefills:
            seconds = every * s.token_s
            if pulls:
                seconds = min(seconds, pull_s + rest * s.token_s)
                if s.worker_id in held:
                    seconds = min(seconds, self._own_s(s))
            seconds += s.queue_s + s.entry_s
            if seconds <= best:
                seconds += s.pages_s(-(-(prompt + 1) // s.state.info.page_size))
                best, found = _keep(best, found, seconds, s)
        return best, self._tied(found)

    def _decode(self, prefill: Standing) -> tuple[float, Standing]:
        """The decode worker that goes on soonest behind it, and the seconds that the second token takes longer."""
        need, costs = self._need, self._costs
        held, prompt = need.held, need.prompt_tokens
        computing_s = self._compute_s(prefill)
        cold_s = max(costs.state_s, costs.moved_s(prompt) - computing_s)
        best = math.inf
        found: list[Standing] = []
        for s in self._decodes:
            seconds = s.entry_s
            if held and s.worker_id in held:
                seconds += max(costs.state_s, costs.moved_s(prompt - held[s.worker_id].position) - computing_s)
            else:
                seconds += cold_s
            if seconds <= best:
                seconds += s.pages_s(-(-(prompt + 1) // s.state.info.page_size))
                best, found = _keep(best, found, seconds, s)
        return best, self._tied(found)

    def _alone(self, doubt_s: float) -> tuple[float, Plan] | None:
        """The decode worker that is soonest by itself. doubt_s: what it must save where it keeps nothing."""
        need, every, rest, pull_s = self._need, self._all, self._rest, self._pull_s
        held, prompt = need.held, need.prompt_tokens
        pulls = self._source is not None
        best = math.inf
        found: list[Standing] = []
        for s in self._decodes:
            seconds, doubt = every * s.token_s, doubt_s
            if pulls:
                seconds = min(seconds, pull_s + rest * s.token_s)
                if s.worker_id in held:
                    seconds, doubt = min(seconds, self._own_s(s)), 0.0
            seconds = s.queue_s + seconds * (1.0 + s.held_up) + s.entry_s + doubt
            if seconds <= best:
                seconds += s.pages_s(-(-(prompt + 1) // s.state.info.page_size))
                best, found = _keep(best, found, seconds, s)
        if not found:
            return None
        decode = self._tied(found)
        return best, self._plan(None, decode, decode, pressure(decode.state, prompt) > 1)

    def _own_s(self, s: Standing) -> float:
        """Seconds to compute what a worker does not keep, and to bring back what it keeps in host memory."""
        held, costs = self._need.held[s.worker_id], self._costs
        seconds = costs.work(held.position, self._need.prompt_tokens) * s.token_s
        return seconds if held.device else seconds + costs.moved_s(held.position)

    def _pulled_s(self, s: Standing) -> float:
        """Seconds with a pull of what another keeps; infinite if none does."""
        if self._source is None or self._source is s:
            return math.inf
        missing = self._need.begin(self._source.worker_id) - self._need.begin(s.worker_id)
        if missing <= 0:
            return math.inf
        return self._costs.pull_s + self._costs.moved_s(missing) + self._rest * s.token_s

    def _compute_s(self, s: Standing) -> float:
        own = self._own_s(s) if s.worker_id in self._need.held else self._all * s.token_s
        return min(own, self._pulled_s(s))

    def _plan(self, prefill: Standing | None, computing: Standing, decode: Standing, waits: bool) -> Plan:
        need, source = self._need, self._source
        own = self._own_s(computing) if computing.worker_id in need.held else self._all * computing.token_s
        pulled = self._pulled_s(computing)
        begin, first = need.begin(computing.worker_id), computing.queue_s + min(own, pulled)
        info = prefill.state.info if prefill is not None else None
        if source is None or pulled >= own:
            work = need.prompt_tokens - begin
            return Plan(info, decode.state.info, waits, work=work, first_token_s=first)
        kept = need.begin(source.worker_id)
        return Plan(info, decode.state.info, waits, source.state.info, kept, need.prompt_tokens - kept, first)

    def _tied(self, found: Sequence[Standing]) -> Standing:
        salt = self._need.salt & 0xFFFFFFFF
        return found[0] if len(found) == 1 else min(found, key=lambda s: zlib.crc32(s.worker_id.encode(), salt))


def _keep(best: float, found: list[Standing], seconds: float, s: Standing) -> tuple[float, list[Standing]]:
    if seconds < best:
        return seconds, [s]
    if seconds == best:
        found.append(s)
    return best, found


def _no_plan(fleet: Fleet, need: Need, split: bool) -> NoPlan:
    """Why nothing is left of the fleet."""
    prefills = fleet.prefills if split else ()
    names = {s.identity for s in fleet.decodes}
    if split:
        names &= {s.identity for s in prefills}
    if not names:
        return NoPlan("mismatch", _differences(prefills[0].state.info, fleet.decodes[0].state.info))
    pools = [[s.capacity for s in pool if s.identity in names] for pool in (prefills, fleet.decodes)]
    longest = min(max(pool) for pool in pools if pool)
    return NoPlan(
        "too_long",
        f"the prompt's {need.prompt_tokens} tokens and an answer of {need.max_tokens} exceed the {longest} tokens "
        "the workers have room for",
    )


def _differences(prefill: WorkerInfo, decode: WorkerInfo) -> str:
    names = ("ranks", "layout", "weights_id")
    parts = [
        f"{name} {a!r} and {b!r}"
        for name, a, b in zip(names, identity(prefill), identity(decode), strict=True)
        if a != b
    ]
    return (
        f"no prefill and decode worker fit together: {prefill.worker_id} and {decode.worker_id} "
        f"differ in {', '.join(parts)}"
    )
