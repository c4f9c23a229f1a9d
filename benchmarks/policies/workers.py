"""Simulated workers, which advance a clock by the cost model. Steps of equal length are taken at once, for speed."""

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.policies.workload import Ask
from router.relay.costs import Costs
from router.relay.fleet import WorkerState
from router.relay.policy import Held
from wire.protocol import Load, RankInfo, Role, WorkerInfo

_PAGE = 64
_CHUNK = 1024  # prompt tokens in a decode worker's step


@dataclass(slots=True)
class Flight:
    """A request in the simulation, with the times of its arrival, first token and end; 0 for what has not happened.

    cached: prompt tokens that were not computed. suffix, work: prompt tokens, and weighted tokens, still to compute.
    computing_s: seconds of the whole prompt. answered_by: the worker that decodes it. behind: its tenant has more than
    its share, so other tenants' prompts are computed before its prompt.
    """

    ask: Ask
    arrived: float
    first: float = 0.0
    over: float = 0.0
    cached: int = 0
    computing_s: float = 0.0
    work: float = 0.0
    suffix: int = 0
    answered_by: str = ""
    behind: bool = False


class Clock:
    """The simulation's clock and its scheduled calls. Calls at the same time run in the order they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Schedule `call` for the time `when`."""
        heapq.heappush(self._calls, (when, next(self._order), call))

    def run(self) -> None:
        """Run all calls, and those that they schedule."""
        while self._calls:
            self.now, _, call = heapq.heappop(self._calls)
            call()


class Kept:
    """A worker's kept snapshots, the least recently used first.

    Each holds a state and the latents since the snapshot before it. states, tokens: the most that it keeps.
    """

    def __init__(self, states: int, tokens: int) -> None:
        self._states, self._tokens = states, tokens
        self._all: OrderedDict[str, int] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return len(self._all)

    def longest(self, ask: Ask) -> int:
        """The number of the prompt's first tokens that are kept."""
        return next((min(at, ask.prompt - 1) for at, name in reversed(ask.prefixes) if name in self._all), 0)

    def keep(self, ask: Ask, *, answer: bool) -> None:
        """Keep the snapshots that a computed prompt leaves, and with `answer` the one at the answer's end."""
        before = 0
        for at, name in ask.prefixes:
            self._put(name, at - before)
            before = at
        if answer and ask.kept_as is not None:
            self._put(ask.kept_as, ask.output)

    def _put(self, name: str, tokens: int) -> None:
        if name in self._all:
            self._all.move_to_end(name)
            return
        self._all[name] = tokens
        self._held += tokens
        while len(self._all) > self._states or self._held > self._tokens:
            _, gone = self._all.popitem(last=False)
            self._held -= gone


class SimulatedWorker:
    """One worker of either role. slow: the factor by which everything takes longer than by the cost model."""

    def __init__(self, clock: Clock, name: str, role: Role, costs: Costs, slots: int, pages: int, slow: float) -> None:
        ranks = tuple(RankInfo(r, 1, "n", "cuda", "h", 1) for r in range(4))
        self.info = WorkerInfo(name, role, "h", 1, "n", 1, "w", "l", 1, _PAGE, pages, slots, 131_072, ranks)
        self.costs = costs
        self.kept = Kept(slots, pages * _PAGE // 2)
        self.coming = 0  # tokens that it is to compute once they have a place and what is kept of them
        self._clock = clock
        self._slow = slow
        self._prompts: list[tuple[Flight, Callable[[], None]]] = []  # in order; the first one is being computed
        self._decoding: list[tuple[float, int, Flight, Callable[[], None]]] = []  # by the step with which each ends
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()  # for a slot and so many pages
        self._order = itertools.count()
        self._steps = 0.0
        self._since = 0.0
        self._tokens = 0  # of all that decode
        self._slots = slots
        self._pages = pages
        self._version = 0

    # What the policy sees

    def state(self) -> WorkerState:
        """The worker's state at this moment, as a router sees it."""
        self._advance()
        running = len(self._decoding) + len(self._prompts)
        ahead = sum(flight.suffix for flight, _ in self._prompts)
        load = Load(
            queued=len(self._waiting), queued_tokens=int(ahead), running=running, free_pages=max(0, self._pages),
            free_slots=self._slots, transferring=0, step_s=0.0, token_s=self._token_s(),
            kept=len(self.kept), decode_s=self._decode_s() if self._decoding else 0.0, answering=len(self._decoding),
            behind=sum(f.behind for f, _ in self._prompts),
        )  # fmt: skip
        return WorkerState(self.info, load, unseen_work=self.coming)

    def held(self, ask: Ask) -> Held | None:
        """The longest prefix of a prompt that the worker keeps; None if it keeps none."""
        position = self.kept.longest(ask)
        return Held(position, True) if position else None

    # What it does

    def enter(self, tokens: int, then: Callable[[], None]) -> None:
        """Take a slot and pages for `tokens` tokens and call `then`, now or once they are free."""
        pages = -(-tokens // _PAGE)
        if not self._waiting and self._slots and self._pages >= pages:
            self._slots -= 1
            self._pages -= pages
            then()
        else:
            self._waiting.append((pages, then))

    def leave(self, tokens: int) -> None:
        """Free the slot and the pages of a sequence of `tokens` tokens, and let waiting ones enter."""
        self._slots += 1
        self._pages += -(-tokens // _PAGE)
        while self._waiting and self._slots and self._pages >= self._waiting[0][0]:
            pages, then = self._waiting.popleft()
            self._slots -= 1
            self._pages -= pages
            then()

    def compute(self, flight: Flight, begin: int, then: Callable[[], None]) -> None:
        """Compute a prompt from `begin` on, or from a longer prefix kept here, and call `then` at its end."""
        self._advance()
        begin = max(begin, self.kept.longest(flight.ask))
        flight.cached, flight.suffix = begin, flight.ask.prompt - begin
        flight.work = self.costs.work(begin, flight.ask.prompt)
        flight.computing_s = flight.work * self.costs.token_s * self._slow
        self._prompts.insert(sum(f.behind <= flight.behind for f, _ in self._prompts), (flight, then))
        self._changed()

    def decode(self, flight: Flight, then: Callable[[], None]) -> None:
        """Generate an answer's tokens after the first one, and call `then` at its end."""
        flight.answered_by = self.info.worker_id
        self._advance()
        end = self._steps + flight.ask.output - 1
        heapq.heappush(self._decoding, (end, next(self._order), flight, then))
        self._tokens += flight.ask.prompt
        self._changed()

    def _decode_s(self) -> float:
        return self._slow * self.costs.decode_s(len(self._decoding), self._tokens)

    def _token_s(self) -> float:
        """Seconds of a prompt token, with its share of the decoding in the same steps."""
        alone = self.costs.token_s * self._slow
        return alone + self._decode_s() / _CHUNK if self._decoding else alone

    def _step_s(self) -> float:
        """Seconds of a step, in which each decoding sequence gains a token and the first prompt a chunk."""
        seconds = self._decode_s() if self._decoding else 0.0
        if self._prompts:
            seconds += self._prompts[0][0].work / self._chunks() * self.costs.token_s * self._slow
        return seconds

    def _chunks(self) -> float:
        """Steps that the first prompt still takes; their number only matters while sequences decode."""
        return max(1.0, self._prompts[0][0].suffix / _CHUNK)

    def _advance(self) -> None:
        now = self._clock.now
        spent, self._since = now - self._since, now
        if spent <= 0 or not (self._decoding or self._prompts):
            return
        steps = spent / self._step_s()
        if self._decoding:
            self._steps += steps
        if self._prompts:
            flight = self._prompts[0][0]
            share = max(0.0, 1.0 - steps / self._chunks())
            flight.work *= share
            flight.suffix = int(flight.suffix * share)

    def _changed(self) -> None:
        """Schedule the next end of a prompt or an answer again, after something changed."""
        self._version += 1
        version = self._version
        steps = []
        if self._decoding:
            steps.append(self._decoding[0][0] - self._steps)
        if self._prompts:
            steps.append(self._chunks())
        if steps:
            self._clock.at(self._clock.now + max(0.0, min(steps)) * self._step_s(), lambda: self._due(version))

    def _due(self, version: int) -> None:
        if version != self._version:
            return
        ends = self._decoding[0][0] - self._steps if self._decoding else float("inf")
        prompt = bool(self._prompts) and self._chunks() <= ends
        self._advance()
        self._version += 1
        if prompt:
            flight, then = self._prompts.pop(0)
            flight.suffix, flight.work = 0, 0.0
            self.kept.keep(flight.ask, answer=False)
        else:
            _, _, flight, then = heapq.heappop(self._decoding)
            self._tokens -= flight.ask.prompt
            self.kept.keep(flight.ask, answer=True)
        then()
        self._changed()
