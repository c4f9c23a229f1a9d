"""Measures what a worker's step costs besides the ranks' computing: `python -m benchmarks.loop`.

The first table has the leader's CPU time by part of a decode step, at several numbers of running sequences: planning a
step while the previous one runs, the frames to a rank and back, taking the results, and publishing to routers. `gap` is
the time that the device waits between a result and the next step: the rank reads the plan that is already there and
fills in the tokens that it sampled. `gap before` is that time where the next step is planned only when the results are
known: taking them, planning, and the frame.

The second table has the wall time of steps through a real leader and its socket to a rank that only waits: a step's
time over the longer of the leader's and the rank's part, with and without planning ahead.
"""

import argparse
import asyncio
import multiprocessing
import os
import time
from array import array
from collections import defaultdict
from pathlib import Path

import torch

from wire.codec import CLUSTER
from wire.protocol import SamplingParams, StepOutputs
from workers.collectives.base import Solo
from workers.config import Rendezvous, WorkerConfig
from workers.leader.leader import Leader
from workers.rank.latest import Latest
from workers.rank.process import LeaderSocket
from workers.schedule.ahead import outcomes
from workers.schedule.limits import Limits
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
from workers.schedule.step import RANKS, Ping, Pong, Ready, Row, StepPlan, StepResult

_MODEL = Path(__file__).parent.parent / "checkpoints" / "ling-nano"
_LENGTH = 2048
_STEPS = 300


def _sequence(n: int, length: int, new: int) -> Sequence:
    return Sequence(
        request_id=f"request-{n}", tokens=array("i", range(n, n + length)), prompt_tokens=length,
        sampling=SamplingParams(max_tokens=new, seed=n, stop_token_ids=(1, 2)), priority=0, order=0,
        handoff=False, source=None, arrived=0.0,
    )  # fmt: skip


def scheduler(sequences: int, drafts: int) -> Scheduler:
    """Make a scheduler in which `sequences` sequences decode, each with `drafts` drafts a step."""
    limits = Limits(
        pages=sequences * 160, page_size=64, slots=sequences, max_model_len=10_000, window=16,
        max_step_tokens=max(1024, 8 * sequences), hold_s=60.0, drafts=drafts, adapts=False,
    )  # fmt: skip
    made = Scheduler(limits)
    for n in range(sequences):
        made.add(_sequence(n, _LENGTH, 7_000))
    while any(s.pending > 1 for s in made.sequences.values()):
        flight = made.plan(0.0)
        made.update(flight, _result(flight.plan.step, flight.plan.rows), 0.0)
    return made


def _result(step: int, rows: tuple[Row, ...]) -> StepResult:
    tokens = tuple((7,) * (1 + r.drafts) for r in rows if r.sample)
    return StepResult(step, tokens, ((),) * len(tokens), (), 0.001)


class _Laps:
    """Sums CPU seconds by part of a step."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._last = time.process_time()

    def start(self) -> None:
        self._last = time.process_time()

    def lap(self, part: str) -> None:
        now = time.process_time()
        self.spent[part] += now - self._last
        self._last = now


def parts(made: Scheduler, steps: int, ahead: bool) -> dict[str, float]:
    """The CPU time of a step in microseconds, by part. ahead: whether steps are planned ahead."""
    laps, latest = _Laps(), Latest(Solo(), torch.device("cpu"))
    flight = made.plan(0.0)
    rows: tuple[Row, ...] = flight.plan.rows
    for step in range(steps):
        now = 0.001 * step
        laps.start()
        following = made.plan_ahead(flight, now) if ahead else None
        laps.lap("plan")
        frame = RANKS.encode(following.plan) if following else b""
        laps.lap("frames")
        result = _result(flight.plan.step, rows)
        latest.took(rows, frozenset(), None, feeds=False)
        latest.came_of(outcomes(result))
        reply = RANKS.encode(result)
        if following:
            laps.start()
            plan = RANKS.decode(frame[4], frame[5:])
            assert isinstance(plan, StepPlan)
            assert plan.ahead is not None
            rows, _ = latest.go_on(plan.ahead, plan.rows)
            laps.lap("gap")
        laps.start()
        told = RANKS.decode(reply[4], reply[5:])
        assert isinstance(told, StepResult)
        laps.lap("frames")
        outputs = made.update(flight, told, now)
        if following:
            flight = made.follow(following, flight, told)
            laps.lap("take")
        else:
            laps.lap("take")
            flight = made.plan(now)
            laps.lap("plan")
            RANKS.encode(flight.plan)
            laps.lap("frames")
            rows = flight.plan.rows
        CLUSTER.encode(StepOutputs(step, 1, made.load, tuple(outputs), ()))
        laps.lap("publish")
    return {part: seconds / steps * 1e6 for part, seconds in laps.spent.items()}


def _rank(endpoint: str, seconds: float) -> None:
    """Run a rank that computes nothing and sleeps `seconds` in each step."""
    leader, latest = LeaderSocket(endpoint), Latest(Solo(), torch.device("cpu"))
    leader.send(Ready(0, os.getpid(), "here", "cpu", "127.0.0.1", 1, 100_000, False))
    while (plan := leader.receive()) is not None:
        if isinstance(plan, Ping):
            leader.send(Pong(0))
            continue
        assert isinstance(plan, StepPlan)
        rows = latest.go_on(plan.ahead, plan.rows)[0] if plan.ahead else plan.rows
        if rows:
            time.sleep(seconds)
        result = _result(plan.step, rows)
        latest.took(rows, frozenset(), None, feeds=False)
        latest.came_of(outcomes(result))
        leader.send(result)


async def wall(sequences: int, seconds: float, steps: int, ahead: bool) -> tuple[float, float]:
    """The wall seconds of a step through a leader, and the leader's CPU seconds in it.

    seconds: for which the rank sleeps in a step. ahead: whether steps are planned ahead.
    """
    config = WorkerConfig(
        model=str(_MODEL), device="cpu", tp=1, slots=sequences, pages=100_000, max_step_tokens=8192,
        load="synthetic", host="127.0.0.1",
    )  # fmt: skip
    leader = Leader(config, "bench", "decode")

    async def launch(rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        process = multiprocessing.get_context("spawn").Process(target=_rank, args=(endpoint, seconds))
        process.start()
        await asyncio.to_thread(process.join)

    await leader.start(launch)
    made = leader._scheduler
    if not ahead:
        made.plan_ahead = lambda behind, now: None  # type: ignore[method-assign]
    for n in range(sequences):
        made.add(_sequence(n, 16, 10_000))
    running = asyncio.create_task(leader.run())
    leader._wake.set()
    while made.steps < 20:
        await asyncio.sleep(0.01)
    first, began, used = made.steps, time.perf_counter(), time.process_time()
    while made.steps < first + steps:
        await asyncio.sleep(0.05)
    took = (time.perf_counter() - began, time.process_time() - used)
    count = made.steps - first
    running.cancel()
    await leader.close()
    return took[0] / count, took[1] / count


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=_STEPS)
    asked = parser.parse_args()
    print(
        "| sequences | drafts | plan, us | frames, us | take, us | in all, us | gap, us | gap before, us | publish, us"
        " |"
    )
    print("|---" * 9 + "|")
    for sequences in (1, 16, 64, 256):
        for drafts in (0, 3):
            spent = parts(scheduler(sequences, drafts), asked.steps, ahead=True)
            before = parts(scheduler(sequences, drafts), asked.steps, ahead=False)
            own = [spent[part] for part in ("plan", "frames", "take")]
            then = sum(before[part] for part in ("plan", "frames", "take"))
            cells = (*own, sum(own), spent["gap"], then, spent["publish"])
            print(f"| {sequences} | {drafts} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |", flush=True)
    print("\n| sequences | rank, ms | ahead, ms a step | ratio to the longer part | not ahead, ms a step | ratio |")
    print("|---" * 6 + "|")
    for sequences, seconds in ((64, 0.001), (64, 0.004), (256, 0.002), (256, 0.006)):
        cells_of = []
        for ahead in (True, False):
            step_s, own_s = asyncio.run(wall(sequences, seconds, asked.steps, ahead))
            cells_of.append(f"{step_s * 1e3:.2f} | {step_s / max(seconds, own_s):.2f}")
        print(f"| {sequences} | {seconds * 1e3:.0f} | " + " | ".join(cells_of) + " |", flush=True)


if __name__ == "__main__":
    main()
