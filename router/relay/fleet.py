"""An immutable view of all workers, from which the policy chooses. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import Struct

from router.relay.costs import Costs
from wire.protocol import Load, WorkerInfo

Identity = tuple[int, str, str]
# Places become dear as they become scarce: a place costs the wait for one, times this power of the share in use.
_SCARCITY = 8
# A sequence without a place on a decode worker waits until whole answers end, in a queue that the router hardly knows.
# That costs more than any free place may cost.
_FULL = 4
# Pages cost nothing while less than this share of them is in use.
_EASY = 0.4
# The assumed length of a prefill worker's prompts, if it has none.
_PROMPT_TOKENS = 2048
_CHUNK_TOKENS = 1024
# A second of prompt on a decode worker delays every sequence there. They hardly notice it while steps are well within
# the inter-token target; at the target it counts this much for each sequence.
_HELD_UP = 0.2
# An answer on a prefill worker is held up by the prompts that come there, and they by it: it must save so much. Of one
# that answers already less is asked, so that as few as suffice change roles, and do not change back and forth.
_FLIP_S, _FLIPPED_S = 0.5, 0.1
# A step that is hardly longer than one of a single sequence is slow for another reason, and would be anywhere.
_COMPANY = 1.25


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A live worker as this router sees it.

    unseen, unseen_tokens: this router's submissions, and their prompt tokens, that `load` does not contain yet.
    unseen_work: the part of these tokens that the worker itself is to compute.
    """

    info: WorkerInfo
    load: Load
    unseen: int = 0
    unseen_tokens: int = 0
    unseen_work: int = 0


class Standing(Struct, frozen=True, gc=False):
    """A worker's part of a request's costs, computed once for each change of its figures.

    token_s: seconds for a prompt's token. queue_s: seconds of prompts ahead. entry_s: what a prompt pays that is
    computed there: the price of a slot. answer_s: what a sequence pays that is answered there: the price of a slot for
    so long, a step, the time by which steps exceed their target, and on a prefill worker what its pool's prompts lose.
    late: whether a step would exceed its target, because of the sequences there. held_up: what a second of prompt
    counts, including the time that running sequences lose. used_pages: pages in use or awaited. easy_pages: a page
    costs nothing while at most so many are in use. place_s: seconds until a place becomes free. full_s: the cost of
    waiting for one. cut: workers from which no snapshot comes to it.
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
    cut: tuple[str, ...] = ()

    def pages_s(self, pages: int) -> float:
        """The price of so many pages in seconds."""
        used = self.used_pages + pages
        if used <= self.easy_pages:
            return 0.0
        return _price(used / self.state.info.pages, self.place_s, self.full_s)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the live workers take: ids below `vocab_size`, prompt and answer of `max_model_len` together.

    page_size: the smallest of theirs.
    """

    vocab_size: int
    max_model_len: int
    page_size: int


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that can exchange snapshots. cut: some decode worker is cut off from other workers."""

    prefills: tuple[Standing, ...]
    decodes: tuple[Standing, ...]
    cut: bool = False

    @property
    def within_reach(self) -> tuple[Standing, ...]:
        """The prefill workers from which some decode worker can pull."""
        if not self.cut:
            return self.prefills
        return tuple(p for p in self.prefills if any(p.worker_id not in d.cut for d in self.decodes))


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
    """Makes fleets from the live workers. It sorts at each change, so that decisions need not sort."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._groups: dict[Identity, tuple[dict[str, Standing], dict[str, Standing]]] = {}
        self._cut: set[str] = set()  # decode workers that are cut off from others
        self._infos: dict[str, WorkerInfo] = {}
        self._limits: Limits | None = None  # of these; None where they have changed since

    @property
    def limits(self) -> Limits | None:
        """The limits that all live workers have in common; None without workers."""
        if self._limits is None and self._infos:
            infos, by_role = self._infos.values(), dict[str, int]()
            for info in infos:
                by_role[info.role] = max(by_role.get(info.role, 0), capacity(info))
            vocab_size, page_size = min(i.vocab_size for i in infos), min(i.page_size for i in infos)
            self._limits = Limits(vocab_size, min(by_role.values()), page_size)
        return self._limits

    def put(self, new: Standing) -> None:
        """Add a worker's standing, or replace it."""
        group = self._groups.get(new.identity)
        if group is None:
            group = self._groups[new.identity] = {}, {}
        group[not new.prefills][new.worker_id] = new
        if self._infos.get(new.worker_id) is not new.state.info:
            self._infos[new.worker_id] = new.state.info
            self._limits = None
        if new.cut and not new.prefills:
            self._cut.add(new.worker_id)
        else:
            self._cut.discard(new.worker_id)

    def drop(self, worker_id: str) -> None:
        """Remove a worker that takes no more requests."""
        self._cut.discard(worker_id)
        if self._infos.pop(worker_id, None) is not None:
            self._limits = None
        for name, group in list(self._groups.items()):
            for pool in group:
                pool.pop(worker_id, None)
            if not any(group):
                del self._groups[name]

    def fleet(self, weights_id: str | None = None) -> Fleet:
        """The present fleet; with `weights_id` only the workers that serve these weights."""
        return Fleet(
            tuple(
                Group(tuple(prefills.values()), tuple(decodes.values()), bool(self._cut))
                for (_, _, weights), (prefills, decodes) in self._groups.items()
                if weights_id is None or weights == weights_id
            ),
            self._costs,
        )


def capacity(info: WorkerInfo) -> int:
    """Tokens of the longest sequence that fits in this worker."""
    return min(info.max_model_len, info.pages * info.page_size)


def identity(info: WorkerInfo) -> Identity:
    """What two workers must have in common to accept each other's snapshots."""
    return info.page_size, info.layout, info.weights_id


def fleet_of(workers: Iterable[WorkerState], costs: Costs) -> Fleet:
    """The fleet of workers with these figures."""
    roster = Roster(costs)
    for worker in workers:
        roster.put(standing(worker, costs))
    return roster.fleet()


def standing(worker: WorkerState, costs: Costs) -> Standing:
    """Make a worker's standing from its own measurements, and from `costs` while it has not measured."""
    info, load = worker.info, worker.load
    prefills = info.role == "prefill"
    token_s = load.token_s or costs.token_s
    used_slots, used_pages = info.slots - load.free_slots, _used_pages(worker)
    slots = used_slots + load.queued + worker.unseen + 1
    answering = load.answering if prefills else load.running
    tokens = (info.pages - load.free_pages) * info.page_size
    # Figures of steps that are over are compared with what the model says of such steps, not of those that run now.
    measured = max(1, round(load.decode_rows) or answering)
    scale = load.decode_s / costs.decode_s(measured, tokens) if load.decode_s else 1.0
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
    elif not load.token_s:  # a decode worker computes prompts in small chunks, within its decode steps
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
        step_s > max(costs.itl_s, _COMPANY * scale * costs.decode_s(1, 0)),
        held_up,
        used_pages,
        int(_EASY * info.pages),
        place_s,
        full_s,
        load.unreachable,
    )


def pressure(worker: WorkerState, prompt_tokens: int) -> float:
    """The share of pages or slots in use with this prompt added, whichever is higher; above 1 it would wait."""
    info, load = worker.info, worker.load
    pages = _used_pages(worker) + -(-(prompt_tokens + 1) // info.page_size)
    slots = info.slots - load.free_slots + load.queued + worker.unseen + 1
    return max(pages / info.pages, slots / info.slots)


def _used_pages(worker: WorkerState) -> int:
    """Pages in use and those awaited.

    The figures lack the lengths of sequences that wait for a snapshot: each counts as the mean of the worker's
    sequences.
    """
    info, load = worker.info, worker.load
    used_slots = info.slots - load.free_slots
    used_pages = info.pages - load.free_pages
    waiting = load.queued_tokens + worker.unseen_tokens
    if info.role == "decode" and used_slots:
        waiting += load.queued * used_pages * info.page_size // used_slots
    return used_pages + -(-waiting // info.page_size)


def _price(share: float, place_s: float, full_s: float) -> float:
    """The price of a place that brings this share into use."""
    return place_s * share**_SCARCITY if share <= 1.0 else full_s * share
