"""Files and batches: their records in a database, and each file's content under its id in the folder `files/`."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from router.store.batches import BATCHES
from router.store.connection import Connection
from router.store.contents import Contents
from router.store.files import FILES
from router.store.records import records

T = TypeVar("T")


class Store:
    """Records and contents. Nothing is created in the folder until there is something to store."""

    def __init__(self, folder: str, url: str | None = None) -> None:
        """url: of a database, where several hosts share the folder; else the records are in `store.sqlite3` there.

        PermissionError if the folder can't be written to, or the nearest folder above it that exists.
        """
        path = Path(folder)
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"data_dir {path}: {nearest} can't be written to")
        self.contents = Contents(path / "files")
        self._database = records(url, path / "store.sqlite3", FILES + BATCHES)

    @property
    def begun(self) -> bool:
        """Whether anything was ever stored."""
        return self._database.begun

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work`'s result, in a transaction of its own; see `Database.run`."""
        return await self._database.run(work)

    def call(self, work: Callable[[Connection], T]) -> T:
        """As `run`, for a thread that may block."""
        return self._database.call(work)

    def close(self) -> None:
        """Finish the work that was given, then close."""
        self._database.close()


def now() -> int:
    """Seconds since 1970, as records have them."""
    return int(time.time())
