"""Gathers the moves between a worker's sequences and its prefix cache for the next plan. Pure."""

from collections.abc import Callable, Iterable, Mapping

from workers.cache.cache import PrefixCache
from workers.cache.kept import Kept
from workers.cache.moves import Copy, Lend
from workers.schedule.builder import StepBuilder
from workers.schedule.lending import Lending, Lent
from workers.schedule.sequence import Sequence
from workers.schedule.step import Export, Install


class PullError(ValueError):
    """A peer asked for a snapshot that it can't have; the message says why."""


class Keeping:
    """Copies of kept snapshots for peers, states to save, and kept snapshots that are pinned meanwhile.

    A snapshot is pinned until the plan that reads it is made, or while a sequence waits for it.
    """

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self.lending = Lending()
        self._pinned: list[Kept] = []  # pinned until the plan that reads them is made
        self._arrived: dict[str, int] = {}  # positions of kept snapshots that the next plan installs, by request
        self.saves: list[Copy] = []

    # Copies for peers

    def pull(self, request_id: str, peer: str, position: int, digest: bytes, have: int, ranks: int = 0) -> None:
        """`peer`, of so many ranks, wants a copy of a kept snapshot for its request; PullError if it can't have it."""
        kept = self._cache.index.by_digest(position, digest)
        if kept is None:
            raise PullError("it is no longer kept")
        if request_id in self.lending:
            raise PullError("a kept snapshot is being sent for this request already")
        if not 0 <= have <= position:
            raise PullError(f"a peer that holds {have} latents can't have a snapshot of {position} tokens")
        self.lending.ask(Lent(request_id, peer, kept, have, ranks))

    def lend(self, step: StepBuilder, fits: Callable[[int], bool]) -> None:
        """Send copies to peers with this plan, as far as the ranks have memory for them.

        fits: whether there is memory for a snapshot with so many latents.
        """
        while lent := self.lending.next(fits):
            kept, have = lent.kept, lent.have
            self._pinned.append(kept)
            if kept.slot >= 0:
                pages = kept.pages[have // self._cache.page_size :]
                at = (kept.slot, pages, have, kept.position)
                step.send_kept(Export(lent.request_id, lent.peer, *at, True, lent.ranks))
            else:
                keys, files = self._cache.below_device(kept, have)
                step.lend(Lend(lent.request_id, lent.peer, keys, have, kept.position, files, lent.ranks))

    def lost(self, kept: Kept, on_disk: bool) -> list[Lent]:
        """A snapshot in host memory or a file is damaged.

        Returns the waiting copies that no tier can provide any more.
        """
        if on_disk:
            self._cache.lost_on_disk(kept)
        else:
            self._cache.lost_on_host(kept)
        return self.lending.forget(lambda lent: self._cache.tier(lent.kept) is None)

    # Pins

    def pin(self, kept: Kept) -> None:
        """Pin a snapshot until the plan that copies it is made."""
        kept.pins += 1
        self._pinned.append(kept)

    def let_go(self, kept: Kept) -> None:
        """Take back a `pin`: no sequence begins from it after all."""
        self._pinned.remove(kept)
        kept.pins -= 1

    def unpin(self, seq: Sequence) -> None:
        """Unpin the snapshot for which a sequence waited."""
        if seq.fetching is not None:
            seq.fetching.pins -= 1
            seq.fetching = None

    def planned(self) -> None:
        """The plan is made: unpin what it reads, because ranks run plans in order."""
        self.saves.clear()
        while self._pinned:
            self._pinned.pop().pins -= 1

    # States to keep

    def arrived(self, request_id: str, position: int) -> None:
        """The next plan installs a kept snapshot for this request."""
        self._arrived[request_id] = position

    def keep_arrived(
        self, installs: Iterable[Install], sequences: Mapping[str, Sequence], step: StepBuilder, now: float
    ) -> None:
        """Keep snapshots that came from host memory or a peer, so that the next sequence needs no transfer."""
        for install in installs:
            position = self._arrived.pop(install.request_id, None)
            seq = sequences.get(install.request_id)
            if position is None or seq is None:
                continue
            slot = self._cache.reserve(seq.known, position, now)
            if slot is not None:
                step.copy(Copy(seq.slot, slot))
                self._cache.keep(seq.known, position, seq.pages, slot, now, state_in=None)
        self._arrived.clear()

    def save(self, seq: Sequence, now: float) -> bool:
        """Keep the state of a sequence, so that it or the next turn can continue there; whether it is kept."""
        slot = self._cache.reserve(seq.known, seq.computed, now)
        if slot is not None:
            self.saves.append(Copy(seq.slot, slot))
            self._cache.keep(seq.known, seq.computed, seq.pages, slot, now, state_in=seq.slot)
            return True
        kept = self._cache.index.at(seq.known, seq.computed)
        return kept is not None and kept.slot >= 0
