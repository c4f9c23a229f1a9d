"""Files and batches: their records in a database, and below `files/` of a folder a content by each file's id."""

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
    """Records and contents. Nothing is made in the folder before there is something to keep."""

    def __init__(self, folder: str, url: str | None = None) -> None:
        """`url`: of the database, for a folder that several hosts share; else it is `store.sqlite3` in the folder.

        PermissionError if the folder, or the nearest one above it that there is, can't be written to."""
        path = Path(folder)
        nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"data_dir {path}: {nearest} can't be written to")
        self.contents = Contents(path / "files")
        self._database = records(url, path / "store.sqlite3", FILES + BATCHES)

    @property
    def begun(self) -> bool:
        """Whether anything was ever kept here."""
        return self._database.begun

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work`'s result, in a transaction of its own; see `Database.run`."""
        return await self._database.run(work)

    def call(self, work: Callable[[Connection], T]) -> T:
        """The same, for a thread that may block."""
        return self._database.call(work)

    def close(self) -> None:
        """Finish what was given, then close."""
        self._database.close()


def now() -> int:
    """Seconds since 1970, as records have them."""
    return int(time.time())
