"""A model of the ranks' memory, token by token and without tensors, which shows when a plan reads a wrong place."""

from dataclasses import dataclass, field

from workers.cache.moves import Fetch, Lend
from workers.schedule.step import StepPlan

Ids = tuple[int, ...]


@dataclass
class Host:
    start: int
    latents: Ids
    state: Ids


@dataclass
class Memory:
    """A rank's memory: each page's ids, and the ids each state slot has absorbed. `page_size` ids a page."""

    page_size: int
    pages: dict[int, list[int]] = field(default_factory=dict)
    states: dict[int, Ids] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)
    host: dict[int, Host] = field(default_factory=dict)
    disk: dict[str, Host] = field(default_factory=dict)
    fetched: dict[str, tuple[int, Ids, Ids]] = field(default_factory=dict)  # start, latents, state
    pulled: dict[str, tuple[int, Ids, Ids]] = field(default_factory=dict)
    sent: dict[str, tuple[int, Ids, Ids]] = field(default_factory=dict)
    verified: dict[int, Ids] = field(default_factory=dict)  # of the step before, by slot

    def read(self, pages: Ids | list[int], start: int, stop: int) -> Ids:
        """The ids at positions [start, stop). pages: the sequence's pages from start // page_size on."""
        first = start // self.page_size
        return tuple(self.pages[pages[p // self.page_size - first]][p % self.page_size] for p in range(start, stop))

    def write(self, pages: Ids | list[int], start: int, ids: Ids) -> None:
        """Store ids at positions from `start` on. pages: the sequence's pages from start // page_size on."""
        first = start // self.page_size
        for p, token in enumerate(ids, start):
            page = self.pages.setdefault(pages[p // self.page_size - first], [-1] * self.page_size)
            page[p % self.page_size] = token

    def files(self, plan: StepPlan) -> None:
        """Apply a plan's writes and erasures of files."""
        for write in plan.writes:
            entries = [self.host[key] for key in write.keys]
            latents = tuple(i for entry in entries for i in entry.latents)
            assert entries[0].start == write.start
            assert write.start + len(latents) == write.position == len(entries[-1].state)
            assert len(write.token_ids) == 4 * len(latents)
            if write.before:
                before = self.disk[f"/disk/{write.before}"]
                assert before.start + len(before.latents) == write.start
            assert bool(write.before) == bool(write.start)
            assert write.file not in self.disk
            self.disk[write.file] = Host(write.start, latents, entries[-1].state)
        for erase in plan.erases:
            if erase.latents:
                self.disk.pop(erase.file, None)
            else:
                self.disk[erase.file].state = ()

    def below_device(self, what: Fetch | Lend) -> tuple[int, Ids, Ids]:
        """A snapshot in host memory or a file: the first position, the latents from there on, and the state."""
        entries = [self.host[key] for key in what.keys] or [self.disk[file] for file in what.files]
        assert entries[0].start <= what.start
        latents = tuple(i for entry in entries for i in entry.latents)[what.start - entries[0].start :]
        assert what.start + len(latents) == what.position == len(entries[-1].state)
        return what.start, latents, entries[-1].state

    def run(self, plan: StepPlan, drafts: dict[int, Ids] | None = None) -> None:
        """Run a plan in the order of the ranks. drafts: by slot, for rows with drafts."""
        self._receive(plan)
        self._compute(plan, drafts)

    def _receive(self, plan: StepPlan) -> None:
        for commit in plan.commits:
            self.states[commit.slot] = (*self.states[commit.slot], *self.verified[commit.slot][: commit.tokens])
        self.verified = {}
        for store in plan.stores:
            latents = self.read(store.pages, store.start, store.stop)
            state = self.states[store.slot] if store.slot >= 0 else ()
            assert store.slot < 0 or len(state) == store.stop
            self.host[store.key] = Host(store.start, latents, state)
        for copy in plan.saves:
            self.states[copy.to_slot] = self.states[copy.slot]
        self.files(plan)
        for drop in plan.drops:
            if drop.latents:
                del self.host[drop.key]
            else:
                self.host[drop.key].state = ()
        for discard in plan.discards:
            self.fetched.pop(discard.request_id, None)
            self.pulled.pop(discard.request_id, None)
        self.fetched |= {fetch.request_id: self.below_device(fetch) for fetch in plan.fetches}
        self.sent |= {lend.request_id: self.below_device(lend) for lend in plan.lends}
        for install in plan.installs:
            source = self.fetched if install.host else self.pulled
            start, latents, state = source.pop(install.request_id)
            assert start == install.start
            self.write(install.pages, start, latents)
            self.states[install.slot] = state
        for copy in plan.copies:
            self.states[copy.to_slot] = self.states[copy.slot]
            if copy.page >= 0:
                self.pages[copy.to_page] = list(self.pages[copy.page])

    def _compute(self, plan: StepPlan, drafts: dict[int, Ids] | None) -> None:
        for row in plan.rows:
            if row.page_offset == 0 and row.new_pages:
                self.tables[row.slot] = []
            table = self.tables[row.slot]
            assert len(table) == row.page_offset or not row.new_pages
            table += row.new_pages
            state = self.states[row.slot] if row.start else ()
            # A state is the ids it has absorbed: it must be of exactly what the latents before it are of.
            assert state == self.read(table, 0, row.start)
            for count, slot in row.keeps:
                self.states[slot] = (*state, *row.token_ids[:count])
            ids = row.token_ids
            if row.drafts:
                assert drafts is not None
                assert (len(ids), row.keeps, len(drafts[row.slot])) == (1, (), row.drafts)
                ids = self.verified[row.slot] = (*ids, *drafts[row.slot])
            else:
                self.states[row.slot] = (*state, *ids)
            self.write(table[row.start // self.page_size :], row.start, ids)
        for export in plan.exports:
            start, latents, _ = self.sent.get(export.request_id, (export.start, (), ()))
            latents += self.read(export.pages, export.start, export.stop)
            state = self.states[export.slot] if export.last else ()
            assert not export.last or len(state) == export.stop == start + len(latents)
            self.sent[export.request_id] = (start, latents, state)
