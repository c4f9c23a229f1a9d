"""Records in a SQLite file, off the event loop. Replicas of one host may share it."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from router.store.connection import Connection, DatabaseError

T = TypeVar("T")
_BUSY_S = 10.0


class Database:
    """SQLite, with one connection in one thread: work runs in the order in which it was given.

    schema: statements that create what is missing (`CREATE … IF NOT EXISTS`). The file and its folder are created with
    the first work, readable by their owner alone.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self._schema = schema
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.stem)

    @property
    def begun(self) -> bool:
        """Whether anything was ever stored."""
        return self.path.exists()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction of its own and return its result. The transaction is on disk when this returns,
        and undone if `work` raises.
        """
        return await asyncio.wrap_future(self._thread.submit(self._run, work))

    def call(self, work: Callable[[Connection], T]) -> T:
        """As `run`, for a thread that may block."""
        return self._thread.submit(self._run, work).result()

    def close(self) -> None:
        """Finish the work that was given, then close. A second call does nothing."""
        self._thread.shutdown(wait=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, work: Callable[[Connection], T]) -> T:
        if self._connection is None:
            self._connection = self._open()
        connection = self._connection
        # Taken for writing from the start: a reader that begins to write could find another before it.
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
        return result

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
        except OSError as error:
            raise DatabaseError(f"router.data_dir: {self.path} can't be written: {error.strerror}") from error
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(self._schema)
        return connection
