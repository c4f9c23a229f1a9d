"""Simulates a fleet under a workload with one policy."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from benchmarks.policies.baselines import Policy
from benchmarks.policies.workers import Clock, Flight, SimulatedWorker
from benchmarks.policies.workload import Ask, Session
from router.relay.admission import roomy
from router.relay.costs import Costs
from router.relay.fair import FairQueue
from router.relay.fleet import fleet_of
from router.relay.policy import Need, Plan
from wire.protocol import Role

_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Setup:
    """The simulated fleet. slots, pages: of each worker. slow: by worker, the factor on its steps' times; default 1."""

    costs: Costs
    prefills: int = 4
    decodes: int = 4
    slots: int = 64
    pages: int = 40_000
    slow: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of a good answer: seconds to its first token, and mean seconds between its tokens."""

    first_s: float
    token_s: float

    def met(self, flight: Flight) -> bool:
        """Whether an answer met both targets; a refused request did not."""
        if not flight.over:
            return False
        gap = (flight.over - flight.first) / max(1, flight.ask.output - 1)
        return flight.first - flight.arrived <= self.first_s and gap <= self.token_s


class Simulation:
    """One simulated run of a policy."""

    def __init__(
        self,
        setup: Setup,
        policy: Policy,
        seed: int,
        fair: FairQueue[int] | None = None,
        deadline_s: float = math.inf,
    ) -> None:
        """fair: the queue in which requests wait for their turn, as in routers; None sends each to workers at once.

        deadline_s: a request whose first token can't come within it is refused when it arrives or when its turn comes.
        """
        self.clock = Clock()
        self.flights: list[Flight] = []
        self._policy = policy
        self._fair = fair
        self._deadline_s = deadline_s
        self.most_waiting = 0
        self._ends: dict[int, Callable[[], None]] = {}
        self._behind: Counter[str] = Counter()  # by tenant, prompts under way that are behind
        self._plan: Plan | None = None
        self._looks_at = 0.0
        self._seed = seed
        self._costs = setup.costs
        slow = dict(setup.slow)
        roles: tuple[tuple[Role, int], ...] = (("prefill", setup.prefills), ("decode", setup.decodes))
        self.workers = {
            name: SimulatedWorker(self.clock, name, role, setup.costs, setup.slots, setup.pages, slow.get(name, 1.0))
            for role, count in roles
            for name in (f"{role}{n}" for n in range(count))
        }

    def run(self, sessions: Iterable[Session]) -> list[Flight]:
        """Simulate all sessions to their ends; returns all requests in the order of their arrival."""
        for session in sessions:
            self.clock.at(session.begins, lambda session=session: self._ask(session, 0))  # type: ignore[misc]
        self.clock.run()
        return self.flights

    def _ask(self, session: Session, turn: int) -> None:
        flight = Flight(session.asks[turn], self.clock.now)
        number = len(self.flights)
        self.flights.append(flight)

        def over() -> None:
            flight.over = self.clock.now
            if turn + 1 < len(session.asks):
                self.clock.at(self.clock.now + session.gaps[turn], lambda: self._ask(session, turn + 1))

        if self._fair is None:
            self._start(flight, self._choose(number), over)
            return
        if self._late(number):
            return
        self._ends[number] = over
        self._fair.push(number, 0, flight.ask.tenant, flight.ask.prompt + flight.ask.output)
        self.most_waiting = max(self.most_waiting, len(self._fair))
        self._look()

    def _choose(self, number: int) -> Plan:
        fleet = fleet_of([worker.state() for worker in self.workers.values()], self._costs)
        plan = self._policy(fleet, self._need(self.flights[number].ask, number), number)
        assert isinstance(plan, Plan), plan
        return plan

    def _late(self, number: int) -> bool:
        """Whether a request can't meet its deadline because of the requests before it, as routers predict it."""
        if self._deadline_s == math.inf or self._fair is None:
            return False
        fleet = fleet_of([worker.state() for worker in self.workers.values()], self._costs)
        plan = self._policy(fleet, self._need(self.flights[number].ask, number), number)
        assert isinstance(plan, Plan), plan
        computing = fleet.prefills if (plan.prefill or plan.decode).role == "prefill" else fleet.decodes
        ahead = self._fair.ahead(0, self.flights[number].ask.tenant) / sum(1.0 / s.token_s for s in computing)
        return plan.first_token_s + ahead > self._deadline_s

    def _may_go(self, number: int) -> bool:
        self._plan = self._choose(number)
        flight = self.flights[number]
        flight.behind = self._backlogged(flight.ask.tenant)
        return roomy(self._plan) or self._overdue(number) or self._precedes(flight)

    def _backlogged(self, tenant: str) -> bool:
        """Whether a tenant has more requests than its share, by the routers' rule."""
        assert self._fair is not None
        return self._fair.backlogged(0, tenant) or self._behind[tenant] > 0

    def _precedes(self, flight: Flight) -> bool:
        """Whether workers have room for a request and would compute its prompt before others that they have."""
        assert self._plan is not None
        theirs = any(worker.state().load.behind for worker in self.workers.values())
        return not self._plan.waits and not flight.behind and theirs

    def _overdue(self, number: int) -> bool:
        """Whether a request whose turn it is can no longer meet its deadline."""
        assert self._plan is not None
        waited = self.clock.now - self.flights[number].arrived
        return waited + self._plan.first_token_s > self._deadline_s

    def _look(self) -> None:
        """Start the requests whose turn it is while there is room, and look again soon if some are left."""
        if self._fair is None:
            return
        while (number := self._fair.take(self._may_go)) is not None:
            assert self._plan is not None
            if self._overdue(number):
                continue
            self._behind[self.flights[number].ask.tenant] += self.flights[number].behind
            self._start(self.flights[number], self._plan, self._ends.pop(number))
        if self._fair and self._looks_at <= self.clock.now:
            self._looks_at = self.clock.now + _LOOK_S
            self.clock.at(self._looks_at, self._look)

    def _need(self, ask: Ask, number: int) -> Need:
        kept = {name: worker.held(ask) for name, worker in self.workers.items()}
        held = {name: found for name, found in kept.items() if found is not None}
        return Need(ask.prompt, ask.output, (self._seed * 1_000_003 + number * 7_919) & 0xFFFFFFFF, held)

    def _start(self, flight: Flight, plan: Plan, over: Callable[[], None]) -> None:
        ask, clock, costs = flight.ask, self.clock, self._costs
        decode = self.workers[plan.decode.worker_id]
        computing = self.workers[plan.prefill.worker_id] if plan.prefill is not None else decode
        begin, pulled_s = 0, 0.0
        if plan.source is not None:
            there = self.workers[plan.source.worker_id].kept.longest(ask)
            begin = min(there, plan.kept_tokens)
            pulled_s = costs.pull_s + costs.moved_s(max(0, begin - computing.kept.longest(ask)))
        tokens = ask.prompt + ask.output

        def ended() -> None:
            decode.leave(tokens)
            over()
            self._look()

        def alone() -> None:
            flight.first = clock.now
            self._behind[ask.tenant] -= flight.behind
            decode.decode(flight, ended)
            self._look()

        def handed_off() -> None:
            flight.first = clock.now
            self._behind[ask.tenant] -= flight.behind
            computing.leave(ask.prompt)
            self._look()
            missing = ask.prompt - decode.kept.longest(ask)
            exposed = max(costs.state_s, costs.moved_s(missing) - flight.computing_s)
            clock.at(clock.now + exposed, lambda: decode.enter(tokens, lambda: decode.decode(flight, ended)))

        def compute() -> None:
            computing.coming -= plan.work
            computing.compute(flight, begin, then)

        computing.coming += plan.work
        then, room = (alone, tokens) if plan.prefill is None else (handed_off, ask.prompt)
        computing.enter(room, lambda: clock.at(clock.now + pulled_s, compute))


def scaled(costs: Costs, reached: float) -> Costs:
    """The costs of a fleet that computes at the share `reached` of the limit; transfers are not scaled."""
    return replace(
        costs,
        token_s=costs.token_s / reached,
        step_s=costs.step_s / reached,
        sequence_s=costs.sequence_s / reached,
        context_s=costs.context_s / reached,
    )
