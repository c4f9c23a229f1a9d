"""Which workers serve a request. Pure: a frozen snapshot of the table in, a plan or a refusal out."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
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
class Need:
    """What a sequence asks of a worker. `salt` decides between equals, so that routers do not herd."""

    prompt_tokens: int
    max_tokens: int
    salt: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a sequence goes. Without `prefill` the decode worker computes the prompt.

    waits: none has room for it now, so that it waits at one of the two.
    """

    prefill: WorkerInfo | None
    decode: WorkerInfo
    waits: bool = field(default=False, compare=False)


NoPlanReason = Literal["no_decode_worker", "mismatch", "too_long"]


@dataclass(frozen=True, slots=True)
class NoPlan:
    """Why there is none."""

    reason: NoPlanReason
    message: str


Key = tuple[float, ...]
Identity = tuple[int, str, str]


def choose(workers: Iterable[WorkerState], need: Need, *, split: bool) -> Plan | NoPlan:
    """The least-loaded pair that can take the sequence; with `split` False, the least-loaded decode worker.

    Where no prefill worker lives, decode workers compute prompts too.

    A pair must agree on ranks, layout and weights, or its snapshots would be refused.
    """
    live = list(workers)
    decodes = [w for w in live if w.info.role == "decode"]
    prefills = [w for w in live if w.info.role == "prefill"]
    if not decodes:
        return NoPlan("no_decode_worker", "no decode worker is live")
    if split and prefills:
        return _choose_pair(prefills, decodes, need)
    fitting = [w for w in decodes if capacity(w.info) >= need.prompt_tokens + need.max_tokens]
    if not fitting:
        return _too_long(need, decodes)
    best = min(fitting, key=lambda w: _prefill_key(w, need))
    return Plan(None, best.info, waits=pressure(best, need) > 1)


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


def _choose_pair(prefills: list[WorkerState], decodes: list[WorkerState], need: Need) -> Plan | NoPlan:
    best_prefill = _best(prefills, need, "prefill")
    best_decode = _best(decodes, need, "decode")
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


def _prefill_key(worker: WorkerState, need: Need) -> Key:
    """Room first, then the tokens to be computed before this prompt's."""
    load = worker.load
    full = pressure(worker, need)
    ahead = load.queued_tokens + worker.unseen_tokens
    busy = load.running + load.queued + worker.unseen
    return max(full, 1.0), ahead, busy, full, _tie(worker, need)


def _decode_key(worker: WorkerState, need: Need) -> Key:
    """Room first, then the scarcer resource, then how many sequences share each step."""
    load = worker.load
    full = pressure(worker, need)
    busy = load.running + load.queued + load.transferring + worker.unseen
    return max(full, 1.0), full, busy, _tie(worker, need)


def _tie(worker: WorkerState, need: Need) -> int:
    return zlib.crc32(worker.info.worker_id.encode(), need.salt & 0xFFFFFFFF)


def _identity(info: WorkerInfo) -> Identity:
    return len(info.ranks), info.layout, info.weights_id


def _best(
    workers: list[WorkerState], need: Need, stage: Literal["prefill", "decode"]
) -> dict[Identity, tuple[Key, WorkerInfo]]:
    """The best fitting worker of each identity."""
    tokens = need.prompt_tokens + (1 if stage == "prefill" else need.max_tokens)
    key_of = _prefill_key if stage == "prefill" else _decode_key
    best: dict[Identity, tuple[Key, WorkerInfo]] = {}
    for worker in workers:
        if capacity(worker.info) < tokens:
            continue
        key, identity = key_of(worker, need), _identity(worker.info)
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
