"""Which prefixes the workers keep, as their own events tell: the same on every router."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.relay.policy import Held
from wire.digest import digests_at, packed, prefix_digest
from wire.protocol import KeptEvent, Mark, Tier


@dataclass(frozen=True, slots=True)
class Candidates:
    """The digests under which a prompt's beginnings may be kept, the longest first: (position, digest)."""

    positions: tuple[tuple[int, bytes], ...]


def candidates(token_ids: Sequence[int], boundaries: Sequence[int], page_size: int, scope: str) -> Candidates:
    """Where workers keep states on the way through a prompt like this one.

    At the end of each turn; one token before it, since the last token of an answer was sampled and never computed;
    one before the prompt's end, and where earlier prompts of the conversation ended so: after the same opening of an
    answer.
    """
    opening = len(token_ids) - boundaries[-1] if boundaries else 0
    at = {p for b in boundaries for p in (b - 1, b, b + opening - 1)} | {len(token_ids) - 1}
    marks = marks_at(token_ids, at, page_size, scope)
    return Candidates(tuple((mark.position, mark.digest) for mark in marks))


def marks_at(token_ids: Sequence[int], at: Iterable[int], page_size: int, scope: str) -> tuple[Mark, ...]:
    """Names of the snapshots after the first p tokens, for those p of `at` that lie within; the longest first."""
    positions = sorted({p for p in at if 0 < p < len(token_ids)})
    raw = memoryview(packed(token_ids))
    floors = digests_at(token_ids, [p // page_size * page_size for p in positions], scope)
    return tuple(
        Mark(p, prefix_digest(floor, raw[p // page_size * page_size * 4 : p * 4]))
        for p, floor in zip(reversed(positions), reversed(floors), strict=True)
    )


class Prefixes:
    """What one worker keeps. Digests are shortened to 8 bytes: a false match costs a refused pull, nothing else."""

    __slots__ = ("_tiers",)

    def __init__(self) -> None:
        self._tiers: dict[int, Tier] = {}

    def __len__(self) -> int:
        return len(self._tiers)

    def update(self, events: Iterable[KeptEvent]) -> None:
        """What has changed at the worker."""
        for event in events:
            if event.tier is None:
                self._tiers.pop(_short(event.digest), None)
            else:
                self._tiers[_short(event.digest)] = event.tier

    def longest(self, of: Candidates) -> Held | None:
        """The longest beginning of a prompt that the worker keeps."""
        if not self._tiers:
            return None
        for position, digest in of.positions:
            tier = self._tiers.get(_short(digest))
            if tier is not None:
                return Held(position, tier == "device")
        return None

    def tier(self, mark: Mark) -> Tier | None:
        """The nearest tier in which the worker keeps it."""
        return self._tiers.get(_short(mark.digest))


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


def scope_of(tenant: str | None, salt: str | None, share_all: bool) -> str:
    """Whose prefixes a request may share: its tenant's, or everybody's, and never those of another salt."""
    owner = "" if share_all or tenant is None else f"tenant:{tenant}"
    if not salt:
        return owner
    return f"{owner}\0salt:{hashlib.blake2b(salt.encode(), digest_size=16).hexdigest()}"
