"""Kept snapshots by the tokens they continue: a radix tree over page digests. Pure; owns no pages and no slots."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wire.digest import PageDigests
from workers.cache.kept import Kept

# How many digests of computed pages, and of evicted snapshots, are remembered to explain misses.
_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sequence's ids and the digests of their whole pages."""

    ids: Sequence[int]
    digests: PageDigests

    def tail(self, position: int) -> tuple[int, ...]:
        """The ids after the last whole page before `position`, up to `position`."""
        size = self.digests.page_size
        return tuple(self.ids[position // size * size : position])

    def common(self, other: "Tokens", position: int) -> bool:
        """Whether both have the same first `position` ids."""
        return (
            position <= min(len(self.ids), len(other.ids))
            and self.digests.floor(position) == other.digests.floor(position)
            and self.tail(position) == other.tail(position)
        )


class Index:
    """All kept snapshots of a worker.

    After any mix of calls a snapshot's parent is its longest known prefix, and `resident` names a device page for each
    whole page of each snapshot on the device.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._by_floor: dict[bytes, list[Kept]] = {}
        # Page digest -> page -> number of snapshots that hold it there.
        self._resident: dict[bytes, dict[int, int]] = {}
        self._pages_of: dict[Kept, tuple[bytes, ...]] = {}
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._evicted: OrderedDict[bytes, None] = OrderedDict()
        self._foreign: set[bytes] = set()  # page digests of snapshots on disk that this worker can't continue

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._pages_of)

    def __len__(self) -> int:
        return len(self._pages_of)

    def __contains__(self, kept: Kept) -> bool:
        return kept in self._pages_of

    def longest(self, tokens: Tokens, limit: int) -> Kept | None:
        """The longest snapshot that is a prefix of at most `limit` of the tokens."""
        return next(self._prefixes(tokens, limit), None)

    def at(self, tokens: Tokens, position: int) -> Kept | None:
        """The snapshot of exactly the first `position` tokens."""
        found = self.longest(tokens, position)
        return found if found is not None and found.position == position else None

    def by_digest(self, position: int, digest: bytes) -> Kept | None:
        """The snapshot of `position` tokens with that digest."""
        return next((k for k in self._pages_of if k.position == position and k.digest == digest), None)

    def resident(self, tokens: Tokens, limit: int) -> list[int]:
        """The device pages that hold the sequence's first whole pages, up to the first gap."""
        out = []
        for page_digest in tokens.digests.pages[: limit // self._page_size]:
            places = self._resident.get(page_digest)
            if not places:
                break
            out.append(next(iter(places)))
        return out

    def seen(self, tokens: Tokens, limit: int) -> int:
        """How many of the first `limit` tokens, in whole pages, were computed before."""
        count = 0
        for page_digest in tokens.digests.pages[: limit // self._page_size]:
            if page_digest not in self._seen:
                break
            count += 1
        return count * self._page_size

    def foreign(self, tokens: Tokens, limit: int) -> int:
        """How many of the first `limit` tokens, in whole pages, are on disk in a form this worker can't continue."""
        if not self._foreign:
            return 0
        whole = range(limit // self._page_size, 0, -1)
        found = (k for k in whole if tokens.digests.floor(k * self._page_size) in self._foreign)
        return next(found, 0) * self._page_size

    def note_foreign(self, floor: bytes) -> None:
        """Remember the whole pages of a snapshot that this worker can't continue."""
        self._foreign.add(floor)

    def was_evicted(self, tokens: Tokens, above: int, limit: int) -> bool:
        """Whether a snapshot of a prefix longer than `above` was kept once and evicted."""
        whole = range(above // self._page_size, limit // self._page_size + 1)
        return any(tokens.digests.floor(k * self._page_size) in self._evicted for k in whole)

    def note(self, tokens: Tokens, computed: int) -> None:
        """Remember that the sequence's first `computed` tokens were computed."""
        for page_digest in tokens.digests.pages[: computed // self._page_size]:
            self._seen[page_digest] = None
            self._seen.move_to_end(page_digest)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def insert(self, kept: Kept, tokens: Tokens) -> None:
        """Add a snapshot; its `parent` is set here. There must be none at its position yet."""
        kept.parent = self.longest(tokens, kept.position)
        family = kept.parent.children if kept.parent else {k for k in self._pages_of if k.parent is None}
        for child in [c for c in family if c.position > kept.position and self._extends(c, kept, tokens)]:
            self._adopt(child, kept)
        if kept.parent:
            kept.parent.children.add(kept)
        self._by_floor.setdefault(kept.floor, []).append(kept)
        self._pages_of[kept] = tuple(tokens.digests.pages[: kept.position // self._page_size])
        self.place(kept)

    def place(self, kept: Kept) -> None:
        """Note that a snapshot's pages are on the device."""
        for page_digest, page in zip(self._pages_of[kept], kept.pages, strict=False):
            places = self._resident.setdefault(page_digest, {})
            places[page] = places.get(page, 0) + 1

    def displace(self, kept: Kept) -> None:
        """Note that a snapshot's pages are about to leave the device."""
        for page_digest, page in zip(self._pages_of[kept], kept.pages, strict=False):
            places = self._resident[page_digest]
            places[page] -= 1
            if not places[page]:
                del places[page]
            if not places:
                del self._resident[page_digest]

    def remove(self, kept: Kept) -> None:
        """Remove a snapshot that no tier holds any more; its children become its parent's."""
        if kept.pages:
            raise ValueError(f"the snapshot of {kept.position} tokens still holds pages")
        del self._pages_of[kept]
        beside = self._by_floor[kept.floor]
        beside.remove(kept)
        if not beside:
            del self._by_floor[kept.floor]
        if kept.parent:
            kept.parent.children.discard(kept)
        for child in list(kept.children):
            self._adopt(child, kept.parent)
        self._evicted[kept.floor] = None
        if len(self._evicted) > _REMEMBERED:
            self._evicted.popitem(last=False)

    def _prefixes(self, tokens: Tokens, limit: int) -> Iterator[Kept]:
        """Snapshots that are prefixes of at most `limit` of the tokens, the longest first."""
        for whole in range(min(limit, len(tokens.ids)) // self._page_size, -1, -1):
            beside = self._by_floor.get(tokens.digests.floor(whole * self._page_size), ())
            fitting = [k for k in beside if k.position <= limit and tokens.tail(k.position) == k.tail]
            yield from sorted(fitting, key=lambda k: -k.position)

    def _extends(self, longer: Kept, kept: Kept, tokens: Tokens) -> bool:
        """Whether `longer` is known to begin with the tokens of `kept`, which are the first of `tokens`."""
        pages, whole = self._pages_of[longer], kept.position // self._page_size
        if not kept.tail:
            return len(pages) >= whole and pages[whole - 1] == kept.floor
        if len(pages) > whole:  # the page with the tail is whole, so only equal ids can tell
            return len(tokens.digests.pages) > whole and pages[whole] == tokens.digests.pages[whole]
        return longer.floor == kept.floor and longer.tail[: len(kept.tail)] == kept.tail

    def _adopt(self, child: Kept, parent: Kept | None) -> None:
        if child.parent:
            child.parent.children.discard(child)
        child.parent = parent
        if parent:
            parent.children.add(child)
