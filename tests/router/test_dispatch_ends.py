"""Tests that each worker with a job's request gets an abort when the job ends, and no worker gets it later."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from router.metrics import Metrics
from router.relay.choice import Choice, Prompt
from router.relay.costs import Costs
from router.relay.dispatch import Dispatcher
from router.relay.fleet import Fleet, WorkerState, fleet_of
from router.relay.job import Job
from router.relay.leg import Leg
from router.relay.policy import Held
from router.relay.table import WorkerTable
from router.text.tokenizer import Tokenizer
from tests.router.test_policy import worker
from wire.protocol import Abort, SamplingParams, SeqOutput, Submit, WorkerInfo
from wire.tokens import TokenIds


class Wire:
    """A link that records what would be sent."""

    def __init__(self, state: WorkerState) -> None:
        self.state, self.info = state, state.info
        self.sent: list[Submit | Abort] = []
        self.legs: list[Leg] = []

    def submit(self, message: Submit, leg: Leg, work: int) -> None:
        self.sent.append(message)
        self.legs.append(leg)

    def abort(self, message: Abort) -> None:
        self.sent.append(message)

    def forget(self, request_id: str) -> None:
        pass

    @property
    def said(self) -> list[tuple[type, str]]:
        return [(type(message), message.request_id) for message in self.sent]


class Table(WorkerTable):
    """A table of the workers `there`, without connections."""

    def __init__(self) -> None:
        super().__init__("r", "", Costs())
        self.wires = {"p0": Wire(worker("p0", "prefill")), "d0": Wire(worker("d0", "decode"))}
        self.there = True

    def fleet(self, weights_id: str | None = None) -> Fleet:
        return fleet_of([wire.state for wire in self.wires.values()] if self.there else [], Costs())

    def infos(self) -> Iterable[WorkerInfo]:
        return [state.info for state in self.snapshot()]

    def held(self, of: object) -> dict[str, Held]:
        return {}

    def link(self, worker_id: str) -> Wire:  # type: ignore[override]
        return self.wires[worker_id]


def leave(job: Job) -> None:
    job.leave()


def late(job: Job) -> None:
    job.due(1.0)


Act = Callable[[Dispatcher, Table, Job], None]


def run(checkpoint: Path, act: Act, choices: int = 1) -> None:
    tokenizer = Tokenizer(str(checkpoint))
    prompt, sampling = Prompt(TokenIds.of((1,))), SamplingParams(max_tokens=9, seed=0)

    async def body() -> None:
        table = Table()
        metrics = Metrics(lambda: pytest.fail("nobody asks"))
        dispatcher = Dispatcher(table, metrics, split=True, max_waiting=9, wait_s=60.0, retry_after_s=1)
        job = Job([Choice(i, prompt, sampling, tokenizer) for i in range(choices)], stream=True, priority=0)
        act(dispatcher, table, job)

    asyncio.run(body())


@pytest.mark.parametrize("end", [leave, late])
def test_an_end_right_after_the_requests_were_sent_aborts_each(checkpoint: Path, end: Callable[[Job], None]) -> None:
    def act(dispatcher: Dispatcher, table: Table, job: Job) -> None:
        dispatcher.submit(job)
        end(job)
        dispatcher.drop(job)
        for wire in table.wires.values():
            ids = [stream.request_id for stream in job.streams]
            assert wire.said == [(Submit, i) for i in ids] + [(Abort, i) for i in ids]

    run(checkpoint, act, choices=3)


@pytest.mark.parametrize("end", [leave, late])
def test_an_end_while_no_worker_is_there_leaves_nothing_for_the_next(
    checkpoint: Path, end: Callable[[Job], None]
) -> None:
    def act(dispatcher: Dispatcher, table: Table, job: Job) -> None:
        table.there = False
        dispatcher.submit(job)
        end(job)
        table.there = True
        dispatcher.wake()
        dispatcher.drop(job)
        dispatcher.wake()
        assert all(wire.sent == [] for wire in table.wires.values())

    run(checkpoint, act)


@pytest.mark.parametrize("end", [leave, late])
def test_an_end_between_two_tries_is_the_end(
    checkpoint: Path, end: Callable[[Job], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(dispatcher: Dispatcher, table: Table, job: Job) -> None:
        timers: list[tuple[Callable[..., None], tuple[object, ...]]] = []

        def call_later(_: float, call: Callable[..., None], *args: object) -> asyncio.Handle:
            timers.append((call, args))
            return asyncio.Handle(call, args, asyncio.get_running_loop())

        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
        dispatcher.submit(job)
        leg = table.wires["p0"].legs[0]
        leg.stream.receive(leg, SeqOutput(leg.request_id, 0, finish="error", error="no room", retry=True), 0.0)
        assert len(timers) == 1  # the next try
        end(job)
        for call, args in timers:  # it may be due in the same turn of the loop as the end
            call(*args)
        dispatcher.drop(job)
        request_id = job.streams[0].request_id
        assert table.wires["p0"].said == [(Submit, request_id)]  # it said itself that it is over there
        assert table.wires["d0"].said == [(Submit, request_id), (Abort, request_id)]

    run(checkpoint, act)


def test_a_worker_that_has_answered_everything_gets_no_abort(checkpoint: Path) -> None:
    """A decode worker may finish before its prefill worker's token arrives; then it has nothing to free."""

    def act(dispatcher: Dispatcher, table: Table, job: Job) -> None:
        dispatcher.submit(job)
        leg = table.wires["d0"].legs[0]
        leg.stream.receive(leg, SeqOutput(leg.request_id, 1, (5,) * 8, finish="length"), 0.0)
        late(job)
        request_id = job.streams[0].request_id
        assert table.wires["p0"].said == [(Submit, request_id), (Abort, request_id)]
        assert table.wires["d0"].said == [(Submit, request_id)]

    run(checkpoint, act)
