"""Moves a rank's snapshots: to and from peers, host memory and files, and between states and pages of the device."""

from torch import Tensor

from workers.cache.moves import Copy
from workers.collectives.base import Collectives
from workers.model.batch import Caches
from workers.rank.host_store import HostStore
from workers.schedule.step import Install, StepPlan
from workers.transfer import snapshot
from workers.transfer.device import used_here
from workers.transfer.endpoint import Transfers


class Snapshots:
    """Does what a plan asks of snapshots. transfers: None in an engine without peers."""

    def __init__(self, caches: Caches, collectives: Collectives, transfers: Transfers | None, host: HostStore) -> None:
        self._caches = caches
        self._collectives = collectives
        self._transfers = transfers
        self._host = host

    def before(self, plan: StepPlan) -> None:
        """Do all that comes before the plan's rows, once the states of the step before are committed."""
        self._save(plan)
        self._receive(plan)
        for copy in plan.copies:
            self._copy(copy)

    def after(self, plan: StepPlan) -> None:
        """Send what peers get after the plan's rows."""
        for export in plan.exports:
            shard = self._read_shard(export.pages, export.start, export.stop)
            state = snapshot.read_state(self._caches, export.slot) if export.last else None
            self._need_transfers().send(export, shard, state)

    def _save(self, plan: StepPlan) -> None:
        """Make copies on the host, then keep states of sequences that ended."""
        for store in plan.stores:
            rows = self._read_shard(store.pages, store.start, store.stop)
            state = snapshot.read_state(self._caches, store.slot) if store.slot >= 0 else None
            self._host.store(store.key, store.stop - store.start, rows, state)
        for copy in plan.saves:
            self._copy(copy)
        for write in plan.writes:
            self._host.write(write)
        for erase in plan.erases:
            self._host.erase(erase)
        for drop in plan.drops:
            self._host.drop(drop.key, latents=drop.latents)

    def _copy(self, copy: Copy) -> None:
        snapshot.copy_state(self._caches, copy.slot, copy.to_slot)
        if copy.page >= 0:
            snapshot.copy_page(self._caches, copy.page, copy.to_page)

    def _receive(self, plan: StepPlan) -> None:
        for unlink in plan.unlinks:
            self._need_transfers().unlink(unlink.peer)
        for discard in plan.discards:
            self._host.discard(discard.request_id)
            if self._transfers is not None:
                self._transfers.discard(discard.request_id, discard.leaving)
        for link in plan.links:
            self._need_transfers().link(*link.of(self._collectives.rank, self._collectives.size))
        # Installed first, because staged snapshots make room for new ones.
        for install in plan.installs:
            self._install(install)
        for expect in plan.expects:
            self._need_transfers().expect(expect)
        for fetch in plan.fetches:
            if fetch.files:
                self._host.read(fetch.request_id, fetch.files, fetch.start, fetch.position)
            else:
                self._host.fetch(fetch.request_id, fetch.keys, fetch.start, fetch.position)
        for lend in plan.lends:
            self._host.lend(lend, self._need_transfers().send)

    def _need_transfers(self) -> Transfers:
        if self._transfers is None:
            raise RuntimeError("this engine was built without a transfer layer")
        return self._transfers

    def _install(self, install: Install) -> None:
        """Install a snapshot: latents are gathered from the ranks' shares, and the state is taken as it came."""
        source = self._host if install.host else self._need_transfers()
        received = source.take(install.request_id)
        for tensor in (*(shard for _, shard in received.parts), received.state):
            used_here(tensor)
        snapshot.write_shards(
            self._caches,
            install.pages,
            install.start,
            received.parts,
            received.skip,
            self._collectives.size,
            received.split,
            lambda shard: self._collectives.all_gather(shard, 0),
        )
        snapshot.write_state(self._caches, install.slot, received.state)

    def _read_shard(self, pages: tuple[int, ...], start: int, stop: int) -> Tensor:
        rank, size = self._collectives.rank, self._collectives.size
        return snapshot.read_shard(self._caches, pages, start, stop, rank, size)
