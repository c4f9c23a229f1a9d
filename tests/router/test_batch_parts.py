"""Tests the parts of batches: the policy, the input's lines, the store."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.batch.lines import check, read
from router.batch.policy import room
from router.relay.fleet import WorkerState
from router.store import batches, files
from router.store.batches import Lease, LeaseLost, Result, StoredBatch, TooMany
from router.store.connection import DatabaseError
from router.store.contents import Contents
from router.store.files import InUse, NoRoom, Page, StoredFile, new_file_id
from router.store.store import Store
from tests.router.batching import CHAT, PLAIN, line
from wire.protocol import Load, Role, WorkerInfo


def worker(
    role: Role, slots: int = 16, *, free: int = 16, queued: int = 0, pages: int = 100, unseen: int = 0
) -> WorkerState:
    info = WorkerInfo("w", role, "h", 1, "n", 1, "w", "l", 256, 16, 100, slots, 1024, ())
    return WorkerState(info, Load(queued, 0, slots - free, pages, free, 0, 0.0), unseen)


def pools(prefill: WorkerState, decode: WorkerState) -> list[WorkerState]:
    return [prefill, decode]


@pytest.mark.parametrize(
    ("workers", "starting", "expected"),
    [
        (pools(worker("prefill"), worker("decode")), 0, 14),  # one slot in eight is left to the live
        (pools(worker("prefill"), worker("decode")), 5, 9),
        (pools(worker("prefill"), worker("decode", free=3)), 0, 1),
        (pools(worker("prefill"), worker("decode", free=2)), 0, 0),
        (pools(worker("prefill", queued=1), worker("decode")), 0, 0),  # something waits there already
        (pools(worker("prefill"), worker("decode", pages=11)), 0, 0),
        (pools(worker("prefill", unseen=6), worker("decode")), 0, 8),
        ([worker("decode"), worker("decode"), worker("prefill"), worker("prefill")], 0, 28),
        ([worker("decode", queued=1), worker("decode"), worker("prefill")], 0, 14),
        ([worker("decode")], 0, 0),  # no prompt can be computed
        ([], 0, 0),
    ],
)
def test_lines_start_where_both_pools_have_places_to_spare(
    workers: list[WorkerState], starting: int, expected: int
) -> None:
    assert room(workers, 0, starting, 1000, split=True) == expected


def test_lines_of_one_router_are_bounded_and_a_small_worker_serves_them_too() -> None:
    assert room([worker("decode")], 60, 0, 64, split=False) == 4
    assert room([worker("decode")], 64, 0, 64, split=False) == 0
    assert room([worker("decode", slots=1, free=1)], 0, 0, 64, split=False) == 1


@given(st.integers(0, 16), st.integers(0, 3), st.integers(0, 20), st.integers(0, 9))
def test_more_load_never_makes_more_room(free: int, queued: int, unseen: int, running: int) -> None:
    def of(free: int, queued: int, unseen: int, running: int) -> int:
        return room([worker("decode", free=free, queued=queued, unseen=unseen)], running, 0, 9, split=False)

    here = of(free, queued, unseen, running)
    assert 0 <= here <= 9 - running
    assert of(max(0, free - 1), queued, unseen, running) <= here
    assert of(free, queued + 1, unseen, running) <= here
    assert of(free, queued, unseen + 1, running) <= here


def errors_of(tmp_path: Path, text: str | bytes, most_lines: int = 10, line_bytes: int = 1000) -> list[tuple[str, int]]:
    path = tmp_path / "in.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    checked = check(path, CHAT, most_lines, line_bytes)
    assert all(set(e) == {"code", "message", "line", "param"} for e in checked.errors)
    return [(e["code"], e["line"]) for e in checked.errors]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (line("a") + "\n\r\n  \n" + line("b") + "\r\n", []),
        (line("a"), []),
        ("", [("empty_file", None)]),
        ("\n \n", [("empty_file", None)]),
        ("x\n" + line("a") + "\n[]\n{}", [("invalid_json_line", 1), ("invalid_request_line", 3),
                                          ("invalid_request_line", 4)]),
        (line("a")[:-1] + ', "more": 1}', [("invalid_request_line", 1)]),
        (line("a").replace('"custom_id": "a"', '"custom_id": ""'), [("invalid_request_line", 1)]),
        (line("a").replace('"POST"', '"GET"'), [("invalid_method", 1)]),
        (line("a", PLAIN), [("mismatched_url", 1)]),
        ('{"custom_id": "a", "method": "POST", "url": "' + CHAT + '", "body": []}', [("invalid_request_line", 1)]),
        (line("a") + "\n" + line("a"), [("duplicate_custom_id", 2)]),
        (line("a" * 900) + "\n" + line("b"), [("line_too_large", 1)]),
        (line("b") + "\n" + line("a" * 5000), [("line_too_large", 2)]),
        (b'{"custom_id": "\xff"}', [("invalid_json_line", 1)]),
        ("\n".join(line(str(i)) for i in range(12)), [("too_many_lines", 11)]),
        ("x\n" * 9, [("invalid_json_line", i) for i in range(1, 10)]),
    ],
)  # fmt: skip
def test_inputs_are_checked_line_by_line(tmp_path: Path, text: str | bytes, expected: list[tuple[str, int]]) -> None:
    assert errors_of(tmp_path, text) == expected


def test_the_list_of_problems_of_an_input_is_bounded(tmp_path: Path) -> None:
    assert len(errors_of(tmp_path, "x\n" * 5000, most_lines=9000)) == 100


def test_lines_are_read_as_they_were_sent(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n" + line("a") + "\n\n" + line("b", stop="\u2028") + "\n")
    assert [(item.number, item.custom_id) for item in read(path)] == [(0, "a"), (1, "b")]
    assert b"u2028" in list(read(path))[1].body


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "data"))
    assert not store.begun
    yield store
    store.close()


def batch(name: str = "b", tenant: str = "t", **fields: object) -> StoredBatch:
    values: dict[str, object] = {
        "id": name, "tenant": tenant, "model": "m", "endpoint": CHAT, "input_file_id": "f", "completion_window": "24h",
        "metadata": {}, "output_seconds": 10, "status": "validating", "created_at": 1, "expires_at": 99, "times": {},
        "errors": [],
    }  # fmt: skip
    return StoredBatch(**{**values, **fields})  # type: ignore[arg-type]


def file(name: str = "f", tenant: str = "t", size: int = 5, expires_at: int = 50) -> StoredFile:
    return StoredFile(name, tenant, "x", "batch", size, 1, expires_at)


def claim(store: Store, owner: str, now: float) -> str | None:
    ask = partial(batches.claim, owner=owner, model="m", endpoints=(CHAT,), now=now, lease_s=15)
    found = store.call(ask)
    return found.id if found is not None else None


def test_a_batch_has_one_runner_until_its_lease_is_over(store: Store) -> None:
    store.call(partial(batches.create, batch=batch("one"), most=9))
    store.call(partial(batches.create, batch=batch("two"), most=9))
    store.call(partial(batches.create, batch=batch("else", model="other"), most=9))
    assert [claim(store, owner, 1.0) for owner in ("a", "b", "c")] == ["one", "two", None]
    store.call(partial(batches.renew, lease=Lease("one", "a"), now=10.0, lease_s=15))
    assert claim(store, "c", 17.0) == "two"
    with pytest.raises(LeaseLost):
        store.call(partial(batches.renew, lease=Lease("two", "b"), now=17.0, lease_s=15))
    with pytest.raises(LeaseLost):
        store.call(partial(batches.record, lease=Lease("two", "b"), results=[Result(0, True, b"x")]))
    store.call(partial(batches.release, lease=Lease("two", "b")))  # nothing of its to release
    assert claim(store, "b", 18.0) is None
    store.call(partial(batches.release, lease=Lease("two", "c")))
    assert claim(store, "b", 18.0) == "two"


def test_a_line_is_recorded_once_and_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    store.call(partial(batches.create, batch=batch(), most=9))
    assert claim(store, "a", 1.0) == "b"
    lease = Lease("b", "a")
    store.call(partial(batches.record, lease=lease, results=[Result(3, True, b"x", 4, 1, 2)]))
    with pytest.raises((sqlite3.IntegrityError, DatabaseError)):
        store.call(partial(batches.record, lease=lease, results=[Result(4, False, b"y"), Result(3, True, b"z")]))
    found = store.call(partial(batches.find, tenant="t", batch_id="b"))
    assert found is not None
    assert (found.completed, found.failed, found.input_tokens, found.cached_tokens, found.output_tokens) == (
        1, 0, 4, 1, 2
    )  # fmt: skip
    assert store.call(partial(batches.lines_done, batch_id="b")) == {3}
    out = file("out")
    store.call(partial(batches.finish, lease=lease, status="completed", output=out, error=None, now=7))
    done = store.call(partial(batches.find, tenant="t", batch_id="b"))
    assert done is not None
    assert (done.status, done.output_file_id, done.times) == ("completed", "out", {"completed_at": 7})
    assert store.call(partial(batches.lines_done, batch_id="b")) == set()
    assert store.call(partial(files.find, tenant="t", file_id="out", now=8)) == out
    assert claim(store, "a", 99.0) is None


def test_unfinished_batches_of_a_tenant_are_bounded(store: Store) -> None:
    store.call(partial(batches.create, batch=batch("one"), most=1))
    store.call(partial(batches.create, batch=batch("two", tenant="u"), most=1))
    with pytest.raises(TooMany):
        store.call(partial(batches.create, batch=batch("three"), most=1))
    store.call(partial(batches.forget, before=100))  # unfinished ones stay
    assert len(store.call(partial(batches.page, tenant="t", span=Page(None, 9))) or []) == 1
    assert claim(store, "a", 1.0) == "one"
    store.call(partial(batches.fail, lease=Lease("one", "a"), errors=[{"code": "x"}], now=5))
    store.call(partial(batches.create, batch=batch("three"), most=1))
    store.call(partial(batches.forget, before=2))
    assert store.call(partial(batches.find, tenant="t", batch_id="one")) is None


def test_files_expire_but_not_under_a_batch(store: Store) -> None:
    for name, expires in (("f", 50), ("other", 50), ("young", 99)):
        store.call(partial(files.add, file=file(name, expires_at=expires), limit=100))
    store.call(partial(batches.create, batch=batch(), most=9))
    assert store.call(partial(files.find, tenant="t", file_id="other", now=50)) is None
    assert store.call(partial(files.find, tenant="t", file_id="f", now=50)) is not None
    with pytest.raises(InUse):
        store.call(partial(files.delete, tenant="t", file_id="f", now=60))
    assert store.call(partial(files.expire, now=60)) == ["other"]
    assert store.call(files.known) == {"f", "young"}


def test_a_tenants_files_are_bounded_together(store: Store) -> None:
    store.call(partial(files.add, file=file("one", size=60), limit=100))
    store.call(partial(files.add, file=file("two", tenant="u", size=60), limit=100))
    with pytest.raises(NoRoom, match="60"):
        store.call(partial(files.add, file=file("three", size=41), limit=100))
    store.call(partial(files.add, file=file("three", size=41), limit=None))


def test_contents_are_whole_or_not_there(tmp_path: Path) -> None:
    contents = Contents(tmp_path / "files")
    name = new_file_id()

    def broken() -> None:
        with contents.writing(name) as out:
            out.write(b"half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        broken()
    assert list((tmp_path / "files").iterdir()) == []
    with contents.writing(name) as out:
        out.write(b"whole")
    assert contents.path(name).read_bytes() == b"whole"
    with contents.writing("stray") as out:
        out.write(b"x")
    contents.sweep({name}, older_than_s=60)
    assert contents.path("stray").exists()
    contents.sweep({name}, older_than_s=-60)
    assert [path.name for path in (tmp_path / "files").iterdir()] == [name]


def test_a_store_is_read_again_by_the_next_process_and_blocks_nobody(store: Store, tmp_path: Path) -> None:
    store.call(partial(files.add, file=file(), limit=100))
    second = Store(str(tmp_path / "data"))
    assert second.begun

    async def both() -> None:
        with sqlite3.connect(tmp_path / "data" / "store.sqlite3", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(second.run(files.known))
            ticks = 0
            began = time.monotonic()
            while ticks < 3:  # the loop turns while the database is another's
                await asyncio.sleep(0)
                ticks += 1
            assert not waiting.done()
            assert time.monotonic() - began < 5
            other.execute("COMMIT")
            assert await waiting == {"f"}

    asyncio.run(both())
    second.close()
