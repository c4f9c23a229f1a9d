"""Which prefixes the workers keep, as their own events tell: the same on every router."""

import array
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.relay.policy import Held
from wire.digest import digests_at, packed, prefix_digest
from wire.protocol import KeptEvent


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
    positions = sorted(p for p in at if 0 < p < len(token_ids))
    raw = memoryview(packed(token_ids))
    floors = digests_at(token_ids, [p // page_size * page_size for p in positions], scope)
    return Candidates(
        tuple(
            (p, prefix_digest(floor, raw[p // page_size * page_size * 4 : p * 4]))
            for p, floor in zip(reversed(positions), reversed(floors), strict=True)
        )
    )


class Holder:
    """A worker in the index, made anew for each connection to it. log: the digests it was entered under.

    entries: how many of these still stand.
    """

    __slots__ = ("device", "entries", "host", "log", "worker_id")

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.device = (self, True)
        self.host = (self, False)
        self.log = array.array("Q")
        self.entries = 0


Entry = tuple[Holder, bool]  # whether the device has it


class PrefixIndex:
    """Which workers keep which prefixes.

    Digests are shortened to 60 bits, which fit in Python's small integers: a false match costs a refused pull, nothing
    else. Most prefixes are one worker's, so an entry is that worker's, or a dict of several.
    """

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: dict[int, Entry | dict[Holder, bool]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def update(self, holder: Holder, events: Iterable[KeptEvent]) -> None:
        """What has changed at a worker."""
        for event in events:
            digest = _short(event.digest)
            if event.tier is None:
                self._remove(holder, digest)
            else:
                self._enter(digest, holder.device if event.tier == "device" else holder.host)

    def leave(self, holder: Holder) -> None:
        """The connection to a worker ended: nothing is known of it any more."""
        for digest in holder.log:
            self._remove(holder, digest)
        holder.log = array.array("Q")

    def held(self, of: Candidates) -> dict[str, Held]:
        """The longest beginning of a prompt that each worker keeps, by its id."""
        found: dict[str, Held] = {}
        at = self._at
        for position, digest in reversed(of.positions):
            entry = at.get(_short(digest))
            if entry is None:
                continue
            if isinstance(entry, tuple):
                found[entry[0].worker_id] = Held(position, entry[1])
            else:
                both = Held(position, False), Held(position, True)
                found.update({holder.worker_id: both[device] for holder, device in entry.items()})
        return found

    def _enter(self, digest: int, new: Entry) -> None:
        old = self._at.get(digest)
        holder = new[0]
        if old is None:
            self._at[digest] = new
        elif isinstance(old, dict):
            there = holder in old
            old[holder] = new[1]
            if there:
                return
        elif old[0] is holder:
            self._at[digest] = new
            return
        else:
            self._at[digest] = dict((old, new))
        holder.entries += 1
        holder.log.append(digest)
        if len(holder.log) > 2 * holder.entries + 1024:
            self._shorten(holder)

    def _shorten(self, holder: Holder) -> None:
        """Leave out of a log what does not stand any more."""
        standing = {digest for digest in holder.log if self._holds(holder, digest)}
        holder.log = array.array("Q", standing)

    def _holds(self, holder: Holder, digest: int) -> bool:
        entry = self._at.get(digest)
        return entry is not None and (holder in entry if isinstance(entry, dict) else entry[0] is holder)

    def _remove(self, holder: Holder, digest: int) -> None:
        old = self._at.get(digest)
        if old is None or not self._holds(holder, digest):
            return
        holder.entries -= 1
        if isinstance(old, dict):
            del old[holder]
            if len(old) == 1:
                ((last, device),) = old.items()
                self._at[digest] = last.device if device else last.host
        else:
            del self._at[digest]


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little") >> 4


def scope_of(tenant: str | None, salt: str | None, share_all: bool) -> str:
    """Whose prefixes a request may share: its tenant's, or everybody's, and never those of another salt."""
    owner = "" if share_all or tenant is None else f"tenant:{tenant}"
    if not salt:
        return owner
    return f"{owner}\0salt:{hashlib.blake2b(salt.encode(), digest_size=16).hexdigest()}"
