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
    """Records and contents of files and batches. Nothing is created in the folder until there is something to store."""

    def __init__(self, folder: str, url: str | None = None) -> None:
        """url: of a PostgreSQL database; without it the records are in the folder's `store.sqlite3`.

        PermissionError if the folder, or the nearest existing folder above it, can't be written to.
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
        """Run `work` in a transaction of its own and return its result; see `Database.run`."""
        return await self._database.run(work)

    def call(self, work: Callable[[Connection], T]) -> T:
        """As `run`, for a thread that may block."""
        return self._database.call(work)

    def close(self) -> None:
        """Finish the work that was given, then close."""
        self._database.close()


def now() -> int:
    """The present time as records store it, in seconds since 1970."""
    return int(time.time())
