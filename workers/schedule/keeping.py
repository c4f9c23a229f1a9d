"""What moves between a worker's sequences and its prefix cache, gathered for the next plan. Pure."""

from collections.abc import Callable, Iterable, Mapping

from workers.cache.cache import PrefixCache
from workers.cache.kept import Kept
from workers.cache.moves import Copy, Lend
from workers.schedule.builder import StepBuilder
from workers.schedule.lending import Lending, Lent
from workers.schedule.sequence import Sequence
from workers.schedule.step import Export, Install


class PullError(ValueError):
    """A peer asked for a snapshot that it can't have; says why."""


class Keeping:
    """Copies of kept snapshots that peers asked for, states to save, and kept snapshots that must stay meanwhile.

    A snapshot is pinned while a plan that reads it is yet to be made, or while a sequence waits for it.
    """

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self.lending = Lending()
        self._pinned: list[Kept] = []  # until the plan that reads them is made
        self._arrived: dict[str, int] = {}  # kept snapshots that the next plan installs: request, position
        self.saves: list[Copy] = []

    # Copies for peers

    def pull(self, request_id: str, peer: str, position: int, digest: bytes, have: int, ranks: int = 0) -> None:
        """`peer`, of so many ranks, wants a copy of a kept snapshot for its request; PullError if it can't have it."""
        kept = self._cache.index.by_digest(position, digest)
        if kept is None:
            raise PullError("it is no longer kept")
        if request_id in self.lending:
            raise PullError("a kept snapshot leaves for this request already")
        if not 0 <= have <= position:
            raise PullError(f"a peer that holds {have} latents can't have a snapshot of {position} tokens")
        self.lending.ask(Lent(request_id, peer, kept, have, ranks))

    def lend(self, step: StepBuilder, fits: Callable[[int], bool]) -> None:
        """Copies that peers asked for leave with this plan, as far as the ranks have memory for them.

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
                keys, file = self._cache.below_device(kept, have)
                step.lend(Lend(lent.request_id, lent.peer, keys, have, kept.position, file, lent.ranks))

    def lost(self, kept: Kept, on_disk: bool) -> list[Lent]:
        """Host memory, or a file, could not give a snapshot back; copies that wait and can't be had any more."""
        if on_disk:
            self._cache.lost_on_disk(kept)
        else:
            self._cache.lost_on_host(kept)
        return self.lending.forget(lambda lent: self._cache.tier(lent.kept) is None)

    # Pins

    def pin(self, kept: Kept) -> None:
        """It must stay where it is until the plan that copies it is made."""
        kept.pins += 1
        self._pinned.append(kept)

    def unpin(self, seq: Sequence) -> None:
        """The snapshot that a sequence waited for from host memory may go."""
        if seq.fetching is not None:
            seq.fetching.pins -= 1
            seq.fetching = None

    def planned(self) -> None:
        """The plan is made: what it reads may go, as ranks run plans in order."""
        self.saves.clear()
        while self._pinned:
            self._pinned.pop().pins -= 1

    # States to keep

    def arrived(self, request_id: str, position: int) -> None:
        """The next plan installs a kept snapshot, for this request."""
        self._arrived[request_id] = position

    def keep_arrived(
        self, installs: Iterable[Install], sequences: Mapping[str, Sequence], step: StepBuilder, now: float
    ) -> None:
        """Keep here what came from host memory or a peer: the next sequence begins from it without a transfer."""
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

    def save(self, seq: Sequence, now: float) -> None:
        """Keep what a sequence that gives up its places has computed: its own rest or the next turn begins there."""
        slot = self._cache.reserve(seq.known, seq.computed, now)
        if slot is not None:
            self.saves.append(Copy(seq.slot, slot))
            self._cache.keep(seq.known, seq.computed, seq.pages, slot, now, state_in=seq.slot)
