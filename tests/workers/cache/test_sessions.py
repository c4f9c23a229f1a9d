"""Tests park, resume and pin: continuing afterwards gives the uninterrupted request's tokens."""

import random

import pytest

from tests.workers.cache.test_engine_cache import engine, greedy, prompt, run
from tests.workers.cache.test_scheduler_cache import Worker, limits, turn
from wire.protocol import Mark
from workers.cache.cache import PrefixCache
from workers.rank.engine import Engine

pytestmark = pytest.mark.process
TURNS = 3


@pytest.fixture(scope="module")
def fresh() -> Engine:
    return engine(states=0)


@pytest.fixture(scope="module")
def turns(fresh: Engine) -> list[list[int]]:
    """The prompts of a few turns of one session, each with the earlier answers."""
    out = [prompt(1, 37)]
    for n in range(TURNS - 1):
        out.append([*out[-1], *run(fresh, [out[-1]])[0], *prompt(10 + n, 9)])
    return out


def end_of(on: Engine, ids: list[int]) -> Mark:
    """The mark of the snapshot that ends one token before the end of these ids."""
    cache = on.scheduler.cache
    kept = next(k for k in cache.index if k.position == len(ids) - 1)
    return Mark(kept.position, kept.digest)


def tier(cache: PrefixCache, mark: Mark) -> str | None:
    kept = cache.index.by_digest(mark.position, mark.digest)
    return cache.tier(kept) if kept is not None else None


def settle(on: Engine) -> None:
    """Step the engine until it has nothing left to do."""
    on.step()
    while on.scheduler.sequences:
        on.step()


def park(on: Engine, mark: Mark) -> None:
    assert on.scheduler.park(mark, 0.0) is None
    settle(on)


def resume(on: Engine, ids: list[int]) -> None:
    """Resume a session as a router does, by a request for its tokens whose sampled token is discarded."""
    name = on.add(ids, greedy(1))
    on.scheduler.sequences[name].warm = True
    settle(on)


@pytest.mark.parametrize("others", [0, 16])
@pytest.mark.parametrize(("resumed", "speculate"), [(False, "off"), (True, "off"), (True, 3)])
def test_parked_on_the_host(
    fresh: Engine, turns: list[list[int]], others: int, resumed: bool, speculate: str | int
) -> None:
    cached = engine(states=40, host_bytes=1 << 30, speculate=speculate)
    beside = [prompt(100 + i, 20 + i) for i in range(others)]
    for n, ids in enumerate(turns):
        got = run(cached, [ids, *beside])
        assert got == run(fresh, [ids, *beside])
        assert cached.scheduler.cache.totals.hits["host"] == n
        whole = [*ids, *got[0]]
        mark = end_of(cached, whole)
        assert tier(cached.scheduler.cache, mark) == "device"
        park(cached, mark)
        assert tier(cached.scheduler.cache, mark) == "host"
        if resumed:
            count = len(cached.scheduler.cache.index)
            resume(cached, whole)
            assert tier(cached.scheduler.cache, mark) == "device"
            assert len(cached.scheduler.cache.index) == count


def test_a_fork_beside_its_parent_and_an_abort(fresh: Engine, turns: list[list[int]]) -> None:
    cached = engine(states=40, host_bytes=1 << 30)
    for ids in turns:
        whole = [*ids, *run(cached, [ids])[0]]
        park(cached, end_of(cached, whole))
        forks = [[*whole, *prompt(50 + i, 5)] for i in range(4)]
        doomed = cached.add([*whole, *prompt(60, 5)], greedy(12))
        cached.step()
        cached.scheduler.remove(doomed)
        assert run(cached, forks) == run(fresh, forks)


def test_a_parked_session_frees_its_memory_and_comes_back() -> None:
    worker = Worker(limits(states=3, host_bytes=10_000))
    ids = list(range(10))
    answer, _ = turn(worker, ids)
    kept = next(k for k in worker.scheduler.cache.index if k.position == 12)
    mark = Mark(kept.position, kept.digest)
    free = worker.scheduler.cache.slots.free
    assert worker.scheduler.park(mark, 0.0) is None
    worker.step()
    assert worker.scheduler.cache.slots.free == free + 1
    assert worker.scheduler.cache.tier(kept) == "host"
    assert turn(worker, [*ids, *answer, 50])[1] == (12, "host")


def test_a_parked_snapshot_stays_on_the_device_if_a_sequence_begins_from_it() -> None:
    worker = Worker(limits(states=9, host_bytes=10_000))
    ids = list(range(10))
    answer, _ = turn(worker, ids)
    kept = next(k for k in worker.scheduler.cache.index if k.position == 12)
    assert worker.scheduler.park(Mark(kept.position, kept.digest), 0.0) is None
    assert turn(worker, [*ids, *answer, 50])[1] == (12, "device")
    worker.step()
    assert worker.scheduler.cache.tier(kept) == "device"


def test_parking_without_a_lower_tier_says_what_to_set() -> None:
    worker = Worker(limits(states=3))
    turn(worker, list(range(10)))
    kept = next(k for k in worker.scheduler.cache.index if k.position == 12)
    reason = worker.scheduler.park(Mark(kept.position, kept.digest), 0.0)
    assert reason is not None
    assert "cache.host_bytes" in reason
    assert worker.scheduler.park(Mark(5, b"nothing"), 0.0) is None


def test_a_pinned_snapshot_outlives_younger_ones_and_goes_once_its_time_is_over() -> None:
    def survives(pinned: bool, released: bool = False) -> bool:
        worker = Worker(limits(states=3))
        turn(worker, list(range(10)))
        kept = next(k for k in worker.scheduler.cache.index if k.position == 12)
        if pinned:
            worker.scheduler.pin("s", [Mark(99, b"gone"), Mark(kept.position, kept.digest)], 0.0, until=1000.0)
        now = 600.0
        worker.scheduler.cache.pins.expire(1001.0 if released else now)
        for n in range(4):
            worker.add([30 * (n + 1) + i for i in range(8)], 1)
            worker.finish(now)
        return worker.scheduler.cache.tier(kept) is not None

    assert survives(pinned=True)
    assert not survives(pinned=False)
    assert not survives(pinned=True, released=True)


def test_pins_never_keep_a_sequence_from_running() -> None:
    worker = Worker(limits(states=3, pages=10))
    rng = random.Random(1)
    for n in range(12):
        turn(worker, [rng.randrange(90) for _ in range(20)])
        for kept in list(worker.scheduler.cache.index):
            worker.scheduler.pin(f"s{n}-{kept.position}", [Mark(kept.position, kept.digest)], 0.0, until=1e9)
    assert all(kept.pinned for kept in worker.scheduler.cache.index)
    pinned = sum(kept.pinned for kept in worker.scheduler.cache.index)
    assert pinned == len(worker.scheduler.cache.pins)
