"""The contract: wherever a sequence begins, and whatever runs or ends beside it, it gives the fresh run's tokens."""

import random
import time
from collections import defaultdict

import pytest

from tests.workers.cache.test_engine_cache import engine, greedy, origins, prompt, run
from workers.rank.engine import Engine
from workers.schedule.sequence import Sequence, State

pytestmark = pytest.mark.process

NEW = 12
BEGINNINGS = ("nothing", "device", "host", "branch", "forks", "preempted", "recovered")


@pytest.fixture(scope="module")
def fresh() -> Engine:
    return engine(states=0)


def submit(on: Engine, name: str, ids: list[int], new: int = NEW, had: int = 0, priority: int = 0) -> None:
    on.scheduler.add(
        Sequence(
            request_id=name, tokens=list(ids), prompt_tokens=len(ids) - had, sampling=greedy(new), priority=priority,
            order=0, handoff=False, source=None, arrived=time.monotonic(),
        )
    )  # fmt: skip


def prepared(beginning: str, first: list[int], stem: list[int]) -> Engine:
    """An engine that keeps what the sequence is to begin from."""
    cached = engine(states=1, host_bytes=1 << 30) if beginning == "host" else engine(states=60)
    if beginning in ("device", "host", "recovered"):
        run(cached, [first])
    if beginning == "host":
        run(cached, [prompt(200, 90)])  # takes the device's place
    if beginning == "branch":
        for n in range(2):
            run(cached, [[*stem, *prompt(40 + n, 6)]])
    return cached


def step_until_done(on: Engine, wanted: set[str], doomed: list[str], answers: dict[str, list[int]]) -> None:
    steps = 0
    while wanted & on.scheduler.sequences.keys():
        for output in on.step():
            answers[output.request_id] += output.token_ids
        steps += 1
        if doomed and steps % 2:
            on.scheduler.remove(doomed.pop())
    for name in doomed:
        on.scheduler.remove(name)


@pytest.mark.parametrize("beside", ["nobody", "16 others", "aborts"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_fresh_run_s_tokens(fresh: Engine, beginning: str, beside: str) -> None:
    first, stem = prompt(1, 37), prompt(4, 45)
    whole = [*first, *run(fresh, [first])[0], *prompt(10, 9)]
    ids = [*stem, *prompt(42, 6)] if beginning == "branch" else whole
    (expected,) = run(fresh, [ids])
    cached = prepared(beginning, first, stem)
    answers: dict[str, list[int]] = defaultdict(list)
    stood_at = 0
    had = 5 if beginning == "recovered" else 0
    names = {f"wanted {n}" for n in range(4 if beginning == "forks" else 1)}
    preempted = beginning == "preempted"
    for name in names:
        submit(cached, name, [*ids, *expected[:had]], had=had, priority=9 if preempted else 0)
    while preempted and len(answers["wanted 0"]) < 3:
        for output in cached.step():
            answers[output.request_id] += output.token_ids
    # What is beside it; a preempted one yields its slot to these.
    count = 16 if beside != "nobody" else 8 if preempted else 0
    others = {f"other {i}": prompt(100 + i, 20 + i) for i in range(count)}
    right = run(fresh, list(others.values())) if beside != "aborts" else []
    for name, other in others.items():
        submit(cached, name, other)
    while preempted and cached.scheduler.sequences["wanted 0"].state is State.RUNNING:
        stood_at = cached.scheduler.sequences["wanted 0"].computed
        for output in cached.step():
            answers[output.request_id] += output.token_ids
    assert not preempted or any(k.position == stood_at for k in cached.scheduler.cache.index)
    doomed = list(others) if beside == "aborts" else []
    random.Random(beginning).shuffle(doomed)
    step_until_done(cached, names if doomed else {*names, *others}, doomed, answers)
    for name in names:
        assert tuple(answers[name]) == expected[had:]
    if not doomed:
        assert [tuple(answers[name]) for name in others] == right
    hits = origins(cached)
    if beginning in ("device", "host", "branch", "recovered", "forks"):
        assert hits["host" if beginning == "host" else "device"] >= (3 if beginning == "forks" else 1)
    assert cached.scheduler.slots.free == 8
