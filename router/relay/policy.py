"""Which workers serve a request. Pure: a frozen snapshot of the table in, a plan or a refusal out."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from wire.protocol import Load, WorkerInfo


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A live worker as this router sees it.

    unseen, unseen_tokens: this router's submissions, and their prompt tokens, that `load` does not contain yet.
    """

    info: WorkerInfo
    load: Load
    unseen: int = 0
    unseen_tokens: int = 0


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

    def begin(self, info: WorkerInfo) -> int:
        """Tokens that the worker need not compute."""
        held = self.held.get(info.worker_id)
        return held.position if held is not None else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a sequence goes. Without `prefill` the decode worker computes the prompt.

    waits: none has room for it now, so that it waits at one of the two. source, kept_tokens: whose kept snapshot the
    worker that computes the prompt is to begin from, and of how many tokens; None to begin from what it has itself.
    """

    prefill: WorkerInfo | None
    decode: WorkerInfo
    waits: bool = field(default=False, compare=False)
    source: WorkerInfo | None = None
    kept_tokens: int = 0


NoPlanReason = Literal["no_decode_worker", "mismatch", "too_long"]


@dataclass(frozen=True, slots=True)
class NoPlan:
    """Why there is none."""

    reason: NoPlanReason
    message: str


Key = tuple[float, ...]
Identity = tuple[int, str, str]


# In tokens of prefill, what else delays the first token. A pull moves a state and the latents that are missing, a
# hand-off the state at least; at 50 k tokens/s and 10 GB/s a rank's 14 MiB take as long as some 70 tokens.
_PULL_TOKENS = 64
_HANDOFF_TOKENS = 64
# A decode worker computes no longer suffix than this itself: all its sequences wait for such a step.
_LOCAL_TOKENS = 512


def choose(workers: Iterable[WorkerState], need: Need, *, split: bool) -> Plan | NoPlan:
    """The pair that has room and the least to compute before the first token; with `split` False, one decode worker.

    Also with `split`, a decode worker that keeps so much of the prompt that the rest is computed there sooner than it
    is handed over. Where no prefill worker lives, decode workers compute prompts too. A pair must agree on ranks,
    layout and weights, or its snapshots would be refused.
    """
    live = list(workers)
    decodes = [w for w in live if w.info.role == "decode"]
    prefills = [w for w in live if w.info.role == "prefill"]
    if not decodes:
        return NoPlan("no_decode_worker", "no decode worker is live")
    if split and prefills:
        return _near(decodes, need, _choose_pair(prefills, decodes, need), prefills)
    fitting = [w for w in decodes if capacity(w.info) >= need.prompt_tokens + need.max_tokens]
    if not fitting:
        return _too_long(need, decodes)
    best = min(fitting, key=lambda w: _prefill_key(w, need, _source(live, need)))
    return _sourced(Plan(None, best.info, waits=pressure(best, need) > 1), best.info, live, need)


def capacity(info: WorkerInfo) -> int:
    """Tokens the longest sequence may have in this worker."""
    return min(info.max_model_len, info.pages * info.page_size)


def pressure(worker: WorkerState, need: Need) -> float:
    """The scarcer of pages and slots as a share of all, were the sequence added; above 1 it would wait.

    Of sequences queued for a snapshot the worker's figures do not tell the length: each counts as the mean of
    those it holds.
    """
    info, load = worker.info, worker.load
    used_slots = info.slots - load.free_slots
    used_pages = info.pages - load.free_pages
    waiting = load.queued_tokens + worker.unseen_tokens
    if info.role == "decode" and used_slots:
        waiting += load.queued * used_pages * info.page_size // used_slots
    pages = used_pages + -(-waiting // info.page_size) + -(-(need.prompt_tokens + 1) // info.page_size)
    slots = used_slots + load.queued + worker.unseen + 1
    return max(pages / info.pages, slots / info.slots)


def _source(workers: Iterable[WorkerState], need: Need) -> WorkerState | None:
    """The worker whose device keeps most of the prompt."""
    there = [w for w in workers if (held := need.held.get(w.info.worker_id)) and held.device]
    return max(there, key=lambda w: need.begin(w.info), default=None)


def _work(worker: WorkerState, need: Need, source: WorkerState | None) -> int:
    """Tokens of work before the prompt's first token: those ahead of it, its own, and what a pull costs."""
    ahead = worker.load.queued_tokens + worker.unseen_tokens
    own = need.prompt_tokens - need.begin(worker.info)
    if source is not None and _fits(worker, source):
        own = min(own, need.prompt_tokens - need.begin(source.info) + _PULL_TOKENS)
    return ahead + own


def _fits(worker: WorkerState, source: WorkerState) -> bool:
    return _identity(worker.info) == _identity(source.info)


def _sourced(plan: Plan, computing: WorkerInfo, workers: Iterable[WorkerState], need: Need) -> Plan:
    """The plan, with whom to pull from where that saves more than it costs."""
    source = _source(workers, need)
    if source is None or _identity(computing) != _identity(source.info):
        return plan
    saved = need.begin(source.info) - need.begin(computing)
    return replace(plan, source=source.info, kept_tokens=need.begin(source.info)) if saved > _PULL_TOKENS else plan


def _near(decodes: list[WorkerState], need: Need, pair: Plan | NoPlan, prefills: list[WorkerState]) -> Plan | NoPlan:
    """The decode worker alone, where that is sooner than `pair`."""
    live = [*prefills, *decodes]
    pair = pair if isinstance(pair, NoPlan) else _sourced(pair, pair.prefill or pair.decode, live, need)
    able = [
        w
        for w in decodes
        if need.prompt_tokens - need.begin(w.info) <= _LOCAL_TOKENS
        and need.begin(w.info)
        and capacity(w.info) >= need.prompt_tokens + need.max_tokens
        and pressure(w, need) <= 1
    ]
    if not able:
        return pair
    best = min(able, key=lambda w: (_work(w, need, None), *_decode_key(w, need)))
    if isinstance(pair, Plan):
        prefill = next(w for w in prefills if w.info is pair.prefill)
        if _work(prefill, need, _source(live, need)) + _HANDOFF_TOKENS < _work(best, need, None):
            return pair
    return Plan(None, best.info)


def _choose_pair(prefills: list[WorkerState], decodes: list[WorkerState], need: Need) -> Plan | NoPlan:
    source = _source([*prefills, *decodes], need)
    best_prefill = _best(prefills, lambda w: _prefill_key(w, need, source), need.prompt_tokens + 1)
    best_decode = _best(decodes, lambda w: _decode_key(w, need), need.prompt_tokens + need.max_tokens)
    pairs = [
        ((prefill_key[0] + decode_key[0], *prefill_key, *decode_key), prefill, decode)
        for identity, (prefill_key, prefill) in best_prefill.items()
        if identity in best_decode
        for decode_key, decode in [best_decode[identity]]
    ]
    if pairs:
        key, prefill, decode = min(pairs, key=lambda pair: pair[0])
        return Plan(prefill, decode, waits=key[0] > 2)  # each of the two adds 1, or more if it is full
    agreeing = {_identity(w.info) for w in prefills} & {_identity(w.info) for w in decodes}
    if agreeing:
        return _too_long(need, [w for w in [*prefills, *decodes] if _identity(w.info) in agreeing])
    return NoPlan("mismatch", _differences(prefills[0].info, decodes[0].info))


def _prefill_key(worker: WorkerState, need: Need, source: WorkerState | None) -> Key:
    """Room first, then the tokens to be computed before the first token."""
    load = worker.load
    full = pressure(worker, need)
    busy = load.running + load.queued + worker.unseen
    return max(full, 1.0), _work(worker, need, source), busy, full, _tie(worker, need)


def _decode_key(worker: WorkerState, need: Need) -> Key:
    """Room first, then the scarcer resource, then how many sequences share each step.

    What it keeps of the prompt need not be sent: that counts as much as a quarter of its room.
    """
    load = worker.load
    full = pressure(worker, need)
    busy = load.running + load.queued + load.transferring + worker.unseen
    kept = need.begin(worker.info) / need.prompt_tokens
    return max(full, 1.0), full - kept / 4, busy, _tie(worker, need)


def _tie(worker: WorkerState, need: Need) -> int:
    return zlib.crc32(worker.info.worker_id.encode(), need.salt & 0xFFFFFFFF)


def _identity(info: WorkerInfo) -> Identity:
    return len(info.ranks), info.layout, info.weights_id


def _best(
    workers: list[WorkerState], key_of: Callable[[WorkerState], Key], tokens: int
) -> dict[Identity, tuple[Key, WorkerInfo]]:
    """The best worker of each identity among those that take so many tokens."""
    best: dict[Identity, tuple[Key, WorkerInfo]] = {}
    for worker in workers:
        if capacity(worker.info) < tokens:
            continue
        key, identity = key_of(worker), _identity(worker.info)
        if identity not in best or key < best[identity][0]:
            best[identity] = key, worker.info
    return best


def _too_long(need: Need, workers: list[WorkerState]) -> NoPlan:
    roles = {w.info.role for w in workers}
    longest = min(max(capacity(w.info) for w in workers if w.info.role == role) for role in roles)
    return NoPlan(
        "too_long",
        f"the prompt's {need.prompt_tokens} tokens and an answer of {need.max_tokens} exceed the {longest} tokens "
        "the workers have room for",
    )


def _differences(prefill: WorkerInfo, decode: WorkerInfo) -> str:
    names = ("ranks", "layout", "weights_id")
    parts = [
        f"{name} {a!r} and {b!r}"
        for name, a, b in zip(names, _identity(prefill), _identity(decode), strict=True)
        if a != b
    ]
    return (
        f"no prefill and decode worker fit together: {prefill.worker_id} and {decode.worker_id} "
        f"differ in {', '.join(parts)}"
    )
