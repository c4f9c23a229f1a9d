"""Tests the records in a real PostgreSQL: they behave as in SQLite, and routers of two hosts share them."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import router.api.responses.store as response_store
import router.store.store as file_store
from router.store.connection import Connection, DatabaseError
from router.store.postgres import Postgres
from tests.router import test_batch_parts, test_responses_store
from tests.router.conftest import pair, served
from tests.router.postgres import MISSING, Server, postgres, there
from tests.router.test_batch_parts import store  # noqa: F401 - a fixture of the tests below

pytestmark = [pytest.mark.process, pytest.mark.skipif(not there(), reason=MISSING)]

# Of SQLite's file itself.
OF_FILES = {"test_a_store_is_read_again_by_the_next_process_and_blocks_nobody"}
for module in (test_batch_parts, test_responses_store):
    # Those of the records, as they stand; an autouse fixture gives them the other database.
    for name in dir(module):
        test = getattr(module, name)
        if (
            name.startswith("test_")
            and name not in OF_FILES
            and (module is test_responses_store or "store" in test.__code__.co_varnames)
        ):
            globals()[f"{name}_in_postgres"] = test


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as started:
        yield started


@pytest.fixture(autouse=True)
def instead_of_sqlite(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (response_store, file_store):
        monkeypatch.setattr(module, "records", server.records)
    monkeypatch.setattr(Postgres, "begun", False)


def test_a_conversation_goes_on_at_a_router_of_another_host(
    checkpoint: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a Kubernetes Service each request may reach another router; both know the first response."""
    monkeypatch.undo()

    async def act() -> None:
        hosts = [{"run_dir": str(tmp_path / name), "database_url": server.url} for name in ("a", "b")]
        async with (
            served(checkpoint, pair(), **hosts[0]) as a,
            served(checkpoint, pair(), **hosts[1]) as b,
            a.client() as one,
            b.client() as two,
        ):
            asked: dict[str, Any] = {"model": "auto", "input": "Hello", "max_output_tokens": 4}
            first = (await one.post("/v1/responses", json=asked)).json()
            again = await two.get(f"/v1/responses/{first['id']}")
            assert again.json()["output"] == first["output"]
            answer = await two.post("/v1/responses", json=asked | {"previous_response_id": first["id"]})
            assert answer.status_code == 200, answer.text
            assert answer.json()["previous_response_id"] == first["id"]

    asyncio.run(act())


def test_transactions_of_two_routers_are_serialized(server: Server, tmp_path: Path) -> None:
    schema = "CREATE TABLE IF NOT EXISTS counts (n INTEGER NOT NULL);"
    routers = [server.records(None, tmp_path / "counts", schema) for _ in range(2)]
    routers[0].call(lambda db: db.execute("INSERT INTO counts VALUES (?)", (0,)))

    def add(db: Connection) -> None:
        (n,) = db.execute("SELECT n FROM counts").fetchone()
        db.execute("UPDATE counts SET n = ?", (n + 1,))

    threads = [threading.Thread(target=lambda r=r: [r.call(add) for _ in range(25)]) for r in routers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert routers[0].call(lambda db: db.execute("SELECT n FROM counts").fetchone()[0]) == 50
    for one in routers:
        one.close()


def test_a_restarted_database_is_used_again(server: Server, tmp_path: Path) -> None:
    records = server.records(None, tmp_path / "again", "CREATE TABLE IF NOT EXISTS t (n INTEGER);")
    records.call(lambda db: db.execute("INSERT INTO t VALUES (1)"))
    server.stop()
    with pytest.raises(DatabaseError, match=r"router\.database_url"):
        records.call(lambda db: db.execute("SELECT 1"))
    server.start()
    assert records.call(lambda db: db.execute("SELECT n FROM t").fetchone()["n"]) == 1
    records.close()
