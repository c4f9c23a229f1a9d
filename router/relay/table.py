"""The table of workers: a link to each listed worker, and what all links together know."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import get_args

from router.relay.costs import Costs
from router.relay.files import FileLink, file_link
from router.relay.finding import Place, find
from router.relay.fleet import Fleet, Limits, Roster, WorkerState
from router.relay.link import ListedWorker, WorkerLink
from router.relay.policy import Held
from router.relay.prefixes import Candidates, PrefixIndex
from wire.liveness import BEAT_S, AwakeClock
from wire.protocol import Drain, Load, Mark, PeerRef, Pin, Role, Tier, Unpin, WorkerInfo
from wire.tls import tls

TIERS: tuple[Tier, ...] = get_args(Tier)


@dataclass(frozen=True, slots=True)
class KeptAt:
    """A snapshot that a worker keeps: its tokens, the fastest tier that holds it, and its bytes."""

    position: int
    tier: Tier
    bytes: int


class WorkerTable:
    """All workers that this router knows.

    on_live: called when a worker begins to take requests. on_load: called when a worker's figures have changed.
    on_found: called when a worker tells of files that an earlier one left.
    """

    def __init__(self, router_name: str, secret: str, costs: Costs) -> None:
        """TlsError if connections are to be encrypted and can't be."""
        tls()
        self._router_name = router_name
        self._secret = secret
        self.costs = costs
        self._prefixes = PrefixIndex()
        self._roster = Roster(costs)
        self._changed: set[WorkerLink] = set()  # since the roster was made
        self._links: dict[str, WorkerLink] = {}
        self._leaving: list[WorkerLink] = []
        self._awake = AwakeClock(time.monotonic())
        self._listening: asyncio.Task[None] | None = None
        self.on_live: Callable[[], None] = lambda: None
        self.on_load: Callable[[], None] = lambda: None
        self.on_found: Callable[[WorkerLink], None] = lambda link: None

    async def update(self, listed: Sequence[ListedWorker]) -> None:
        """Take discovery's full list: connect to new workers; those that it no longer lists get no new requests."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        wanted = {w.ref.worker_id: w for w in listed}
        for worker_id, link in list(self._links.items()):
            if wanted.get(worker_id) != link.listed:
                link.unlist()
                self._leaving.append(self._links.pop(worker_id))
        for worker_id, worker in wanted.items():
            if worker_id not in self._links:
                self._links[worker_id] = WorkerLink(
                    worker, self._router_name, self._secret, self._came, self._change, self._doubt, self._find_files,
                    self._prefixes, self.costs, self._awake,
                )  # fmt: skip
        self._leaving = [link for link in self._leaving if not link.over]

    async def close(self) -> None:
        """Disconnect from all workers; streams are lost."""
        if self._listening is not None:
            self._listening.cancel()
        links, self._links, self._leaving = self.links(), {}, []
        await asyncio.gather(*(link.close() for link in links))

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._awake.tick(time.monotonic())
            for link in self.links():
                link.check()

    def _came(self) -> None:
        self.on_live()

    def _change(self, link: WorkerLink) -> None:
        self._changed.add(link)
        self.on_load()

    def _find_files(self, link: WorkerLink) -> None:
        self.on_found(link)

    def _doubt(self, ended: WorkerLink) -> None:
        """A worker has ended with sequences: others of its node may be ending by the same cause."""
        for link in self.links():
            if link is not ended and link.connected and link.info.node == ended.info.node:
                link.in_doubt = True

    def links(self) -> list[WorkerLink]:
        """All links, also those to workers that are no longer listed."""
        return [*self._links.values(), *(link for link in self._leaving if not link.over)]

    async def find(self, key: bytes) -> Place | None:
        """The place of the request with a key, if a worker has it."""
        links = [(w, link) for w, link in self._links.items() if link.live]
        return await find(links, key)

    def live_link(self, worker_id: str) -> WorkerLink | None:
        """Return the link to a live worker by its id; None if there is none."""
        link = self._links.get(worker_id)
        return link if link is not None and link.live else None

    def link(self, worker_id: str) -> WorkerLink:
        """Return the link to a listed worker by its id; KeyError if it is not listed."""
        return self._links[worker_id]

    def snapshot(self) -> list[WorkerState]:
        """Return the figures of all live workers."""
        return [link.snapshot() for link in self._links.values() if link.live]

    def fleet(self, weights_id: str | None = None) -> Fleet:
        """The live workers for the policy; with `weights_id` those that serve these weights."""
        self._update_roster()
        return self._roster.fleet(weights_id)

    def in_doubt(self, *workers: WorkerInfo | None) -> bool:
        """Whether one of these workers may have ended with another one of its node."""
        return any(self._links[worker.worker_id].in_doubt for worker in workers if worker is not None)

    def limits(self) -> Limits | None:
        """The limits of the live workers; None if there is none."""
        self._update_roster()
        return self._roster.limits

    def _update_roster(self) -> None:
        for link in self._changed:
            current = self._links.get(link.ref.worker_id)
            if link.live:
                self._roster.put(link.standing())
            elif current is None or current is link or not current.live:
                self._roster.drop(link.ref.worker_id)
        self._changed.clear()

    def held(self, of: Candidates) -> dict[str, Held]:
        """The part of a prompt that each worker keeps, by worker id."""
        return self._prefixes.held(of)

    def kept(self, marks: Sequence[Mark]) -> KeptAt | None:
        """The longest of these snapshots that a live worker keeps, in its fastest tier; None if none is kept."""
        for mark in marks:
            found = [(tier, link.info) for link, tier in self._keepers(mark)]
            if found:
                tier, info = min(found, key=lambda pair: TIERS.index(pair[0]))
                return KeptAt(mark.position, tier, info.state_bytes + mark.position * info.token_bytes)
        return None

    def keepers(self, mark: Mark) -> list[PeerRef]:
        """Where the live workers that keep a snapshot listen, the nearest tier first."""
        return [link.ref for link, _ in sorted(self._keepers(mark), key=lambda pair: TIERS.index(pair[1]))]

    def file_link(self, ref: PeerRef) -> AbstractAsyncContextManager[FileLink]:
        """A link to a worker for one file."""
        return file_link(ref, self._router_name, self._secret)

    def load(self, worker_id: str) -> Load:
        """Return the figures of a listed worker."""
        return self._links[worker_id].load

    def _keepers(self, mark: Mark) -> list[tuple[WorkerLink, Tier]]:
        """The live workers that keep a snapshot, each with its tier."""
        tiers = self._prefixes.tiers(mark)
        return [(link, tiers[w]) for w, link in self._links.items() if link.live and w in tiers]

    def tell_all(self, message: Pin | Unpin) -> None:
        """Send a message to every live worker."""
        for link in self._links.values():
            if link.live:
                link.tell(message)

    def keeping(self, marks: Sequence[Mark]) -> set[WorkerLink]:
        """The links to live workers that keep one of these snapshots."""
        return {link for mark in marks for link, _ in self._keepers(mark)}

    def drain(self, worker_id: str) -> bool:
        """Tell a worker to end; False if no live worker has this id."""
        link = self._links.get(worker_id)
        if link is None or not link.live:
            return False
        link.tell(Drain())
        return True

    async def park(self, mark: Mark) -> list[str | None]:
        """Have every worker move a snapshot off its device. Returns for each the reason if it stays, else None."""
        there = [link for link, tier in self._keepers(mark) if tier == "device"]
        return list(await asyncio.gather(*(link.park(mark) for link in there)))

    def behind(self) -> bool:
        """Whether a live worker has prompts of tenants that have more than their share, whichever router sent them."""
        return any(link.live and link.load.behind for link in self._links.values())

    def live(self) -> dict[Role, int]:
        """The number of live workers of each pool."""
        count: dict[Role, int] = {"prefill": 0, "decode": 0}
        for link in self._links.values():
            count[link.role] += link.live
        return count

    def infos(self) -> Iterable[WorkerInfo]:
        """The infos of all live workers."""
        return (link.info for link in self._links.values() if link.live)
