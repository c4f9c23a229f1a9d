"""Tests that a start with progress may take hours, and that one without progress is ended."""

import asyncio
from typing import Any

import pytest
from rich.console import Console

from cluster.entries import EXPIRY_S, Entries, Failure
from cluster.starting import Hung, Movement, Start
from cluster.status import render
from tests.cluster.test_entries import worker
from wire.progress import Progress, Starting
from workers.leader.loading import LoadProgress
from workers.schedule.step import Loading


def test_only_bytes_and_stages_count_as_progress() -> None:
    movement = Movement(0.0)
    movement.take(Progress("fetching", 1, 10), 100.0)
    assert movement.still(100.0) == 0.0
    movement.take(Progress("fetching", 1, 10, rate=3.0), 700.0)
    assert movement.still(700.0) == 600.0
    movement.take(Progress("fetching", 2, 10), 701.0)
    movement.take(Progress("loading", 2, 10), 1400.0)
    assert movement.still(1401.0) == 1.0


def test_a_hung_start_is_ended_and_reported() -> None:
    reports: list[tuple[Progress, float]] = []

    async def report(progress: Progress, still_s: float) -> None:
        reports.append((progress, still_s))

    async def run() -> None:
        start = Start(report, patience_s=0.01)
        start.tell(Progress("fetching x", 1_000_000, 2_000_000))
        await start.run(asyncio.Event().wait(), every_s=0.001)

    with pytest.raises(Hung, match=r"no progress for 0 s \(load_stall_s\), fetching x: 1.00 of 2.00 MB; it "):
        asyncio.run(run())
    assert all(progress.stage == "fetching x" for progress, _ in reports)


def test_a_start_s_result_or_error_is_returned() -> None:
    async def report(progress: Progress, still_s: float) -> None:
        """Not needed."""

    async def done() -> int:
        return 7

    async def broken() -> None:
        raise ValueError("no")

    async def run() -> None:
        assert await Start(report, 60.0).run(done()) == 7
        with pytest.raises(ValueError, match="no"):
            await Start(report, 60.0).run(broken())

    asyncio.run(run())


def test_ranks_progress_adds_up_and_a_new_stage_begins_at_zero() -> None:
    progress = LoadProgress()
    progress.take(Loading(0, "loading", 50, 100), 10.0)
    both = progress.take(Loading(1, "loading", 30, 100), 12.0)
    assert (both.done, both.total, both.rate, both.left_s) == (80, 200, 40.0, 3.0)
    assert progress.take(Loading(0, "capturing", 1, 4), 20.0) == Progress("capturing", 1, 4)


def starting(worker_id: str, done: int = 0) -> Starting:
    return Starting(worker_id, "decode", "n", Progress("loading", done, 9), 0.0)


def test_a_starting_worker_is_listed_until_it_enters_fails_or_says_nothing() -> None:
    entries = Entries("e")
    assert entries.start(starting("a"), 0.0)
    assert not entries.start(starting("a"), 1.0)
    assert entries.start(starting("a", 3), 1.0)
    entries.start(starting("b"), 1.0)
    entries.start(starting("c"), 2.0)
    assert [w.worker_id for w in entries.listing.starting] == ["a", "b", "c"]
    entries.enter(worker("a"), 2.0)
    entries.fail(Failure("b", "decode", "why"))
    assert [w.worker_id for w in entries.listing.starting] == ["c"]
    assert entries.expire(2.0 + EXPIRY_S)
    assert entries.listing.starting == ()


def test_progress_reads_as_people_want_it() -> None:
    told = Progress("fetching org/x", 12_300_000_000, 104_000_000_000, 3, 25, 1.1e9)
    assert str(told) == "fetching org/x: 3 of 25 files, 12.30 of 104.00 GB, 1,100 MB/s, 83 s left"
    assert str(Progress("starting")) == "starting"


def test_the_terminal_shows_starting_workers_among_the_missing() -> None:
    way: dict[str, Any] = {
        "id": "decode-x", "node": "n", "stage": "loading weights", "done_bytes": 10**9, "total_bytes": 4 * 10**9,
        "done_files": 0, "total_files": 0, "bytes_per_s": 0.0, "left_s": None, "still_s": 40.0,
    }  # fmt: skip
    pools = {"decode": {"configured": 2, "live": 0, "workers": [], "starting": [way]}}
    router = {"name": "r", "pid": 1, "in_flight": 0, "max_queue": 9}
    status = {"model": "m", "ready": False, "reason": "no worker", "router": router, "pools": pools}
    console = Console(width=160)
    with console.capture() as shown:
        console.print(render(status))
    assert "loading weights: 1.00 of 4.00 GB, still for 40 s" in shown.get()
    assert shown.get().count("missing") == 1
