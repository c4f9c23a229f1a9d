"""Tests stored responses: limits, order of eviction, and conversations that outlive their first responses."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api.responses import rows
from router.api.responses.folder import SharedFolder
from router.api.responses.rows import Bounds, Conversation, Record, Run
from router.api.responses.store import ResponseStore

ROOMY = Bounds(100, 10**6)
RUN = Run(b"asked", b"digest")
SUMS = "SELECT COALESCE(SUM(shown), 0), COALESCE(SUM(size), 0) FROM responses"
P = ParamSpec("P")


def alone(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine on a new event loop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def opened(folder: Path, bounds: Bounds = ROOMY) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(folder / "r.sqlite3", bounds)
    try:
        yield store
    finally:
        store.close()


def record(name: str, earlier: Conversation, tenant: str = "t", fill: int = 0) -> Record:
    asked = [{"id": f"i-{name}", "text": "x" * fill}]
    body = {"id": name, "status": "completed", "background": False, "output": [{"id": f"o-{name}"}]}
    return Record(tenant, earlier, asked, body)


async def keep(store: ResponseStore, name: str, parent: str | None = None, **more: Any) -> None:
    """Store a response that continues its parent, as a request does."""
    earlier = Conversation()
    if parent is not None:
        found = await store.conversation(more.get("tenant", "t"), parent)
        assert found is not None
        earlier = found[1]
    await store.put(record(name, earlier, **more))


async def ids(store: ResponseStore, name: str) -> list[str]:
    items = await store.input_items("t", name)
    assert items is not None
    return [item["id"] for item in items]


async def there(store: ResponseStore, *names: str) -> str:
    return "".join([name for name in names if await store.get("t", name) is not None])


@alone
async def test_the_limit_by_count_drops_the_least_recently_used(tmp_path: Path) -> None:
    async with opened(tmp_path, Bounds(3, 10**6)) as store:
        for name in "abc":
            await keep(store, name)
        assert await store.get("t", "a") is not None
        await keep(store, "d")
        assert await there(store, *"abcd") == "acd"
        await keep(store, "x", tenant="other")
        assert await there(store, *"abcd") == "acd"


@alone
async def test_the_limit_by_bytes_drops_the_least_recently_used(tmp_path: Path) -> None:
    async with opened(tmp_path, Bounds(100, 4000)) as store:
        for name in "abcdef":
            await keep(store, name, fill=1000)
        assert await there(store, *"abcdef") == "def"


@alone
async def test_a_conversation_outlives_its_beginning(tmp_path: Path) -> None:
    async with opened(tmp_path, Bounds(2, 10**6)) as store:
        for name, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", "c")):
            await keep(store, name, parent)
        assert await there(store, *"abcd") == "cd"
        assert await ids(store, "d") == ["i-a", "o-a", "i-b", "o-b", "i-c", "o-c", "i-d"]
        assert await store.delete("t", "c")
        assert await ids(store, "d") == ["i-a", "o-a", "i-b", "o-b", "i-c", "o-c", "i-d"]
        assert await store.delete("t", "d")
        left = await store._database.run(lambda db: db.execute("SELECT COUNT(*) FROM responses").fetchone()[0])
        assert left == 0


@alone
async def test_a_response_dropped_while_the_next_one_runs_is_kept_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await keep(store, "a")
        await keep(store, "b", "a")
        found = await store.conversation("t", "b")
        assert found is not None
        await store.delete("t", "b")
        await store.delete("t", "a")
        await store.put(record("c", found[1]))
        assert await ids(store, "c") == ["i-a", "o-a", "i-b", "o-b", "i-c"]


@alone
async def test_tenants_do_not_meet(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await keep(store, "a", tenant="other")
        assert await store.get("t", "a") is None
        assert await store.conversation("t", "a") is None
        assert await store.input_items("t", "a") is None
        assert await store.cancel("t", "a") is None
        assert await store.events("t", "a", -1) == ([], False)
        assert not await store.delete("t", "a")
        assert await store.get("other", "a") is not None


@alone
async def test_events_are_read_from_where_one_left_off(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await store.begin(record_of("a", "in_progress"), RUN, streamed=True)
        assert await store.append("a", 0, 2, b"01", 2)
        assert await store.append("a", 2, 3, b"2", 3)
        assert await other.events("t", "a", -1) == ([(0, b"01"), (2, b"2")], True)
        assert await other.events("t", "a", 0) == ([(0, b"01"), (2, b"2")], True)
        assert await other.events("t", "a", 1) == ([(2, b"2")], True)
        assert await other.events("t", "a", 2) == ([], True)
        assert await store.renew(["a", "b"]) == {"a"}
        assert await other.renew(["a", "b"]) == set()
        await store.finish({**record_of("a", "completed").body}, 3, 4, b"3")
        assert await other.events("t", "a", 2) == ([(3, b"3")], False)
        assert not await store.append("a", 4, 5, b"4", 5)
        assert await store.renew(["a"]) == set()


@alone
async def test_the_first_end_of_a_response_is_final(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        await store.begin(record_of("a", "in_progress"), RUN, streamed=True)
        await store.append("a", 0, 2, b"01", 2)
        cancelled = await other.cancel("t", "a")
        assert cancelled is not None
        assert (cancelled.active, cancelled.body["status"]) == (False, "cancelled")
        assert not await store.append("a", 2, 3, b"2", 3)
        await store.finish(record_of("a", "completed").body, 3, 4, b"3")
        kept = await store.get("t", "a")
        assert kept is not None
        assert kept.body["status"] == "cancelled"
        pieces, active = await store.events("t", "a", 1)
        assert (len(pieces), pieces[0][0], active) == (1, 2, False)
        assert b'"response.incomplete","sequence_number":2,' in pieces[0][1]


@alone
async def test_a_dead_router_s_response_is_taken_over_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(rows.time, "time", lambda: now)
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        await keep(one, "before")
        found = await one.conversation("t", "before")
        assert found is not None
        asked = record("a", found[1])
        await one.begin(replace(asked, body={**asked.body, "status": "in_progress", "output": []}), RUN, streamed=True)
        assert await one.append("a", 0, 2, b"01", 0)
        assert await one.append("a", 2, 5, b"234", 7)
        assert await two.claim(8) == []
        for store, other in ((two, one), (one, two)):
            now += rows.LEASE_S + 1
            (lapsed,) = await store.claim(8)
            assert (lapsed.asked, lapsed.streamed, lapsed.told, lapsed.taken) == (b"asked", True, 5, 7)
            assert (lapsed.record.tenant, lapsed.record.earlier) == ("t", found[1])
            assert [item["id"] for item in lapsed.record.items] == ["i-a"]
            # The one before it may not be dead after all.
            assert not await other.append("a", 5, 6, b"5", 8)
            await other.finish({**asked.body, "status": "completed"}, 5, 6, b"5")
            assert await other.renew(["a"]) == set()
            kept = await other.get("t", "a")
            assert kept is not None
            assert kept.active
        now += rows.LEASE_S + 1
        assert await two.claim(8) == []
        kept = await two.get("t", "a")
        assert kept is not None
        assert (kept.active, kept.body["status"]) == (False, "failed")
        assert "ended" in kept.body["error"]["message"]


@alone
async def test_a_running_response_is_not_dropped(tmp_path: Path) -> None:
    async with opened(tmp_path, Bounds(1, 100)) as store:
        await store.begin(record_of("a", "in_progress"), RUN, streamed=False)
        await keep(store, "b", fill=1000)
        assert await there(store, *"ab") == "a"


@alone
async def test_the_store_survives_being_closed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await keep(store, "a")
    async with opened(tmp_path) as store:
        assert await there(store, "a") == "a"


def record_of(name: str, status: str) -> Record:
    made = record(name, Conversation())
    return Record(made.tenant, made.earlier, made.items, made.body | {"status": status, "background": True})


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["new", "new", "go on", "go on", "delete", "read"]))),
    st.integers(1, 4),
    st.integers(300, 3000),
)
def test_bounds_hold_and_conversations_stay_whole(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]], most: int, size: int
) -> None:
    async def act() -> None:
        said: dict[str, list[str]] = {}
        async with opened(tmp_path_factory.mktemp("store"), Bounds(most, size)) as store:
            for n, (which, what) in enumerate(steps):
                name = list(said)[which % len(said)] if said else ""
                here = await store.get("t", name) is not None
                if what == "new" or (what == "go on" and not here):
                    said[f"r{n}"] = [f"i-r{n}"]
                    await keep(store, f"r{n}", fill=50)
                elif what == "go on":
                    said[f"r{n}"] = [*said[name], f"o-{name}", f"i-r{n}"]
                    await keep(store, f"r{n}", name, fill=50)
                elif what == "delete":
                    assert await store.delete("t", name) == here
                elif here:
                    assert await ids(store, name) == said[name]
                shown, total = await store._database.run(lambda db: tuple(db.execute(SUMS).fetchone()))
                assert shown <= most
                assert total <= size
                noted = await store._database.run(lambda db: db.execute("SELECT * FROM response_totals").fetchone())
                assert noted is None or tuple(noted) == ("t", shown, total)

    asyncio.run(act())


def test_the_last_router_removes_the_shared_folder(tmp_path: Path) -> None:
    one, two = SharedFolder(tmp_path / "x"), SharedFolder(tmp_path / "x")
    one.close()
    assert two.path.is_dir()
    two.close()
    assert not two.path.exists()
