"""Runs a worker's steps: plans each, sends it to the ranks, takes its results. The next is planned while one runs."""

import time
from dataclasses import replace

from workers.leader.figures import UnderWay, WorkerFigures
from workers.leader.handoffs import HandOffs
from workers.leader.ranks import Ranks
from workers.leader.requests import Requests
from workers.schedule.builder import InFlight
from workers.schedule.scheduler import Scheduler


class Stepping:
    """Runs one step after another."""

    def __init__(
        self, scheduler: Scheduler, ranks: Ranks, handoffs: HandOffs, requests: Requests, figures: WorkerFigures
    ) -> None:
        self._scheduler = scheduler
        self._ranks = ranks
        self._handoffs = handoffs
        self._requests = requests
        self._figures = figures
        self._next: UnderWay | None = None  # the ranks have it already
        self._back: float | None = None  # when the latest result came; None once there is nothing to do

    async def step(self, *, draining: bool) -> bool:
        """Run one step; False if there is nothing to do. WorkerLost if a rank ends.

        draining: the worker is about to end, so its answers move to others between two steps.
        """
        under_way, self._next = self._next, None
        if under_way is None:
            now = time.monotonic()
            if draining:
                self._requests.perform(self._handoffs.moving.move_away(now))
            under_way = self._send(self._scheduler.plan(now), now)
            if under_way is not None and self._back is not None:
                under_way = replace(under_way, idle_s=under_way.begun - self._back)
        if under_way is None:
            self._back = None
            self._requests.publish([])
            return False
        # Done while the ranks compute, so that they never wait for it.
        self._requests.publish([])
        ahead = None
        if not draining:  # else the next step waits for the results, for sequences move between two steps
            now = time.monotonic()
            planned = self._scheduler.plan_ahead(under_way.step, now)
            ahead = self._send(planned, now) if planned is not None else None
        result = await self._ranks.result()
        back = self._back = time.monotonic()
        outputs = self._scheduler.update(under_way.step, result, back)
        self._requests.hold(outputs)
        if ahead is not None:
            self._next = replace(ahead, step=self._scheduler.follow(ahead.step, under_way.step, result), begun=back)
        plan = under_way.step.plan
        self._figures.stepped(under_way, sum(map(len, result.tokens)), back, time.monotonic())
        self._requests.perform(self._handoffs.giving.stepped(outputs, plan.exports, back))
        return True

    def _send(self, step: InFlight, began: float) -> UnderWay | None:
        """Give the ranks a step, and peers what it asks of them; None if there is nothing to do."""
        plan = self._handoffs.taking.with_links(step.plan)
        if plan.empty:
            return None
        self._ranks.send(plan)
        sent = time.monotonic()
        self._requests.perform(self._handoffs.taking.planned(plan, sent))
        return UnderWay(step, sent - began, sent)
