"""The index of prefixes that workers keep, built from the workers' events: the same on every router."""

import array
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from router.relay.policy import Held
from wire.digest import digests_at, packed, prefix_digest
from wire.protocol import KeptEvent, Mark, Tier


@dataclass(frozen=True, slots=True)
class Candidates:
    """The names under which workers may keep a prompt's prefixes, longest first: (position, shortened digest)."""

    positions: tuple[tuple[int, int], ...]

    @staticmethod
    def of(positions: Iterable[tuple[int, bytes]]) -> "Candidates":
        """Make candidates from full digests."""
        return Candidates(tuple((position, _short(digest)) for position, digest in positions))


def candidates(token_ids: Sequence[int], boundaries: Sequence[int], page_size: int, scope: str) -> Candidates:
    """The positions at which workers may have kept states of a prompt like this one.

    These are the end of each turn; one token before it, because the last token of an answer was sampled but never
    computed; one token before the prompt's end; and the same place in earlier prompts of the conversation, after the
    opening of each answer.
    """
    opening = len(token_ids) - boundaries[-1] if boundaries else 0
    at = {p for b in boundaries for p in (b - 1, b, b + opening - 1)} | {len(token_ids) - 1}
    return Candidates.of((m.position, m.digest) for m in marks_at(token_ids, at, page_size, scope))


def marks_at(token_ids: Sequence[int], at: Iterable[int], page_size: int, scope: str) -> tuple[Mark, ...]:
    """The names of the snapshots after the first p tokens, longest first, for each p of `at` within the prompt."""
    positions = sorted({p for p in at if 0 < p < len(token_ids)})
    raw = memoryview(packed(token_ids))
    floors = digests_at(token_ids, [p // page_size * page_size for p in positions], scope)
    return tuple(
        Mark(p, prefix_digest(floor, raw[p // page_size * page_size * 4 : p * 4]))
        for p, floor in zip(reversed(positions), reversed(floors), strict=True)
    )


@dataclass(frozen=True, slots=True)
class Sole:
    """The only worker that keeps a prefix, and the tier."""

    worker_id: str
    tier: Tier


class Holder:
    """A worker in the index; each connection to the worker has a new one.

    log: the digests under which it was entered. entries: how many of these are still valid. sole: by tier, its entry
    for prefixes that it alone keeps.
    """

    __slots__ = ("entries", "log", "sole", "worker_id")

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.sole: dict[Tier, Sole] = {tier: Sole(worker_id, tier) for tier in get_args(Tier)}
        self.log = array.array("Q")
        self.entries = 0


Shared = dict[Tier, dict[str, None]]  # the workers that keep a prefix, by tier: dicts, which are copied fast


class PrefixIndex:
    """The workers that keep each prefix.

    Digests are shortened to 60 bits, which fit in Python's small integers; a false match only costs a refused pull.
    Most prefixes have one holder, so that most entries are one object that all entries of this worker share.
    """

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: dict[int, Sole | Shared] = {}

    def __len__(self) -> int:
        return len(self._at)

    def update(self, holder: Holder, events: Iterable[KeptEvent]) -> bool:
        """Apply a worker's events. Returns whether it tells of files that it has found: all others are kept first."""
        found = False
        for event in events:
            digest = _short(event.digest)
            if event.tier is None:
                self._remove(holder, digest)
            else:
                found |= self._enter(holder, digest, event.tier) and event.tier == "disk"
        return found

    def leave(self, holder: Holder) -> None:
        """The connection to a worker ended: remove its entries."""
        for digest in holder.log:
            self._remove(holder, digest)
        holder.log = array.array("Q")

    def held(self, of: Candidates) -> dict[str, Held]:
        """The longest prefix of a prompt that each worker keeps, by worker id."""
        found: dict[str, Held] = {}
        at = self._at
        for position, digest in of.positions:
            entry = at.get(digest)
            if entry is None:
                continue
            if isinstance(entry, Sole):
                if entry.worker_id not in found:
                    found[entry.worker_id] = Held(position, entry.tier == "device")
                continue
            for tier, names in entry.items():
                if not names.keys() <= found.keys():
                    found = {**dict.fromkeys(names, Held(position, tier == "device")), **found}
        return found

    def tiers(self, mark: Mark) -> dict[str, Tier]:
        """The fastest tier in which each worker keeps a snapshot, by worker id."""
        entry = self._at.get(_short(mark.digest))
        if isinstance(entry, Sole):
            return {entry.worker_id: entry.tier}
        return {name: tier for tier, names in (entry or {}).items() for name in names}

    def _enter(self, holder: Holder, digest: int, tier: Tier) -> bool:
        """Whether the worker did not keep it before."""
        old, name = self._at.get(digest), holder.worker_id
        new = not self._holds(name, digest)
        if old is None or (isinstance(old, Sole) and not new):
            self._at[digest] = holder.sole[tier]
        else:
            if isinstance(old, Sole):
                old = self._at[digest] = {old.tier: {old.worker_id: None}}
            _leave(old, name)
            old.setdefault(tier, {})[name] = None
        if new:
            holder.entries += 1
            holder.log.append(digest)
            if len(holder.log) > 2 * holder.entries + 1024:
                holder.log = array.array("Q", {d for d in holder.log if self._holds(name, d)})
        return new

    def _holds(self, name: str, digest: int) -> bool:
        entry = self._at.get(digest)
        if isinstance(entry, dict):
            return any(name in names for names in entry.values())
        return entry is not None and entry.worker_id == name

    def _remove(self, holder: Holder, digest: int) -> None:
        old = self._at.get(digest)
        if old is None or not self._holds(holder.worker_id, digest):
            return
        holder.entries -= 1
        if isinstance(old, dict):
            _leave(old, holder.worker_id)
            if old:
                return
        del self._at[digest]


def _leave(shared: Shared, name: str) -> None:
    for tier, names in list(shared.items()):
        if name in names:
            del names[name]
            if not names:
                del shared[tier]


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little") >> 4


def scope_of(tenant: str | None, salt: str | None, share_all: bool) -> str:
    """The name of the scope in which requests share prefixes: that of a tenant or of everybody, for each salt."""
    owner = "" if share_all or tenant is None else f"tenant:{tenant}"
    if not salt:
        return owner
    return f"{owner}\0salt:{hashlib.blake2b(salt.encode(), digest_size=16).hexdigest()}"
