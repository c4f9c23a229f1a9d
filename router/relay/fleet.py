"""One immutable view of all workers, which every policy chooses from. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from router.relay.costs import Costs
from wire.protocol import Load, WorkerInfo

Identity = tuple[int, str, str]
# Places become dear as they become few: a place costs this power of the share in use of what a wait for one takes.
_SCARCITY = 8
# Whoever waits for a place on a decode worker waits for whole answers, in a queue of which little is known here: more
# than any place that is free may cost.
_FULL = 4
# Below this share of pages in use their price is nothing.
_EASY = 0.4
# Of a prefill worker's prompts, where it has none to go by.
_PROMPT_TOKENS = 2048
_CHUNK_TOKENS = 1024
# A second of prompt on a decode worker holds up every sequence that runs there. Within their inter-token target they
# hardly feel it; at the target it counts this much for each.
_HELD_UP = 0.2
# An answer on a prefill worker is held up by the prompts that come there, and they by it: it must save so much. Of one
# that answers already less is asked, so that as few as suffice change roles, and do not change back and forth.
_FLIP_S, _FLIPPED_S = 0.5, 0.1


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A live worker as this router sees it.

    unseen, unseen_tokens: this router's submissions, and their prompt tokens, that `load` does not contain yet.
    unseen_work: those of these tokens that the worker itself is to compute.
    """

    info: WorkerInfo
    load: Load
    unseen: int = 0
    unseen_tokens: int = 0
    unseen_work: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What a worker's figures say of the next request, whatever that is: computed once for each change.

    token_s: seconds a prompt's token takes. queue_s: of prompts ahead. entry_s: what a prompt pays to be there at all,
    the price of a slot. answer_s: what a sequence pays that is answered there: the price of a slot for so long, a step,
    what steps are beyond their target, and on a prefill worker what its pool's prompts lose. late: whether a step would
    be beyond its target. held_up: what a second of
    prompt counts for, with those that running sequences lose to it. used_pages: with those of all that waits.
    easy_pages: up to so many in use a page costs nothing. place_s: until a place comes free there; full_s: what having
    to wait for one costs.
    """

    state: WorkerState
    worker_id: str
    prefills: bool
    identity: Identity
    capacity: int
    token_s: float
    queue_s: float
    step_s: float
    entry_s: float
    answer_s: float
    late: bool
    held_up: float
    used_pages: int
    easy_pages: int
    place_s: float
    full_s: float

    def pages_s(self, pages: int) -> float:
        """The price of so many pages."""
        used = self.used_pages + pages
        if used <= self.easy_pages:
            return 0.0
        return _price(used / self.state.info.pages, self.place_s, self.full_s)


@dataclass(frozen=True, slots=True)
class Group:
    """Workers whose snapshots fit together."""

    prefills: tuple[Standing, ...]
    decodes: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """All live workers."""

    groups: tuple[Group, ...]
    costs: Costs

    @property
    def prefills(self) -> tuple[Standing, ...]:
        """The prefill pool."""
        return tuple(s for group in self.groups for s in group.prefills)

    @property
    def decodes(self) -> tuple[Standing, ...]:
        """The decode pool."""
        return tuple(s for group in self.groups for s in group.decodes)


class Roster:
    """What fleets are made of: who lives now, sorted as each change comes so that a decision need not."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._groups: dict[Identity, tuple[dict[str, Standing], dict[str, Standing]]] = {}

    def put(self, new: Standing) -> None:
        """Enter a worker's standing, in place of the one before."""
        group = self._groups.get(new.identity)
        if group is None:
            group = self._groups[new.identity] = {}, {}
        group[not new.prefills][new.worker_id] = new

    def drop(self, worker_id: str) -> None:
        """A worker takes no more requests."""
        for name, group in list(self._groups.items()):
            for pool in group:
                pool.pop(worker_id, None)
            if not any(group):
                del self._groups[name]

    def fleet(self, weights_id: str | None = None) -> Fleet:
        """As of now; with `weights_id` only those that serve these weights."""
        return Fleet(
            tuple(
                Group(tuple(prefills.values()), tuple(decodes.values()))
                for (_, _, weights), (prefills, decodes) in self._groups.items()
                if weights_id is None or weights == weights_id
            ),
            self._costs,
        )


def capacity(info: WorkerInfo) -> int:
    """Tokens the longest sequence may have in this worker."""
    return min(info.max_model_len, info.pages * info.page_size)


def identity(info: WorkerInfo) -> Identity:
    """What two workers must agree on, or snapshots of one would be refused by the other."""
    return len(info.ranks), info.layout, info.weights_id


def fleet_of(workers: Iterable[WorkerState], costs: Costs) -> Fleet:
    """The fleet of workers with these figures."""
    roster = Roster(costs)
    for worker in workers:
        roster.put(standing(worker, costs))
    return roster.fleet()


def standing(worker: WorkerState, costs: Costs) -> Standing:
    """What a worker's figures say, by what it measured; where it has not measured yet, by the costs."""
    info, load = worker.info, worker.load
    prefills = info.role == "prefill"
    token_s = load.token_s or costs.token_s
    used_slots, used_pages = info.slots - load.free_slots, _used_pages(worker)
    slots = used_slots + load.queued + worker.unseen + 1
    answering = load.answering if prefills else load.running
    tokens = (info.pages - load.free_pages) * info.page_size
    scale = load.decode_s / costs.decode_s(max(1, answering), tokens) if load.decode_s else 1.0
    step_s = scale * costs.decode_s(min(answering + 1 if prefills else slots, info.slots), tokens)
    held_up = 1.0 + _HELD_UP * answering * (step_s / costs.itl_s) ** 2
    whole_s = costs.answer_tokens * step_s
    place_s, full_s = whole_s / max(1, used_slots), _FULL * whole_s
    answer_s = _price(slots / info.slots, place_s, full_s) + step_s
    answer_s += costs.answer_tokens * max(0.0, step_s - costs.itl_s)
    entry_s = 0.0
    if prefills:
        answer_s += _FLIPPED_S if answering else _FLIP_S
        prompt = load.queued_tokens / load.queued if load.queued else _PROMPT_TOKENS
        place_s = full_s = prompt * token_s
        entry_s = _price(slots / info.slots, place_s, full_s)
    elif not load.token_s:  # it computes prompts in small chunks, and decodes in the same steps
        token_s += step_s / _CHUNK_TOKENS
    queue_s = (load.queued_tokens + worker.unseen_work) * token_s
    return Standing(
        worker,
        info.worker_id,
        prefills,
        identity(info),
        capacity(info),
        token_s,
        queue_s,
        step_s,
        entry_s,
        answer_s,
        step_s > costs.itl_s,
        held_up,
        used_pages,
        int(_EASY * info.pages),
        place_s,
        full_s,
    )


def pressure(worker: WorkerState, prompt_tokens: int) -> float:
    """The scarcer of pages and slots as a share of all, were a prompt added; above 1 it would wait."""
    info, load = worker.info, worker.load
    pages = _used_pages(worker) + -(-(prompt_tokens + 1) // info.page_size)
    slots = info.slots - load.free_slots + load.queued + worker.unseen + 1
    return max(pages / info.pages, slots / info.slots)


def _used_pages(worker: WorkerState) -> int:
    """Pages in use, and those of all that waits.

    Of sequences queued for a snapshot the worker's figures do not tell the length: each counts as the mean of those it
    holds.
    """
    info, load = worker.info, worker.load
    used_slots = info.slots - load.free_slots
    used_pages = info.pages - load.free_pages
    waiting = load.queued_tokens + worker.unseen_tokens
    if info.role == "decode" and used_slots:
        waiting += load.queued * used_pages * info.page_size // used_slots
    return used_pages + -(-waiting // info.page_size)


def _price(share: float, place_s: float, full_s: float) -> float:
    """Of a place, with which such a share of all is in use."""
    return place_s * share**_SCARCITY if share <= 1.0 else full_s * share
