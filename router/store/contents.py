"""Contents of files by id. A content exists completely or not at all. Everything here blocks: call it in a thread."""

import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PART = ".part"


class Contents:
    """A folder with one file for each id. A file that is being written has another name until it is whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: str) -> Path:
        """Where a content is stored. The id must come from a record, never from a client."""
        return self._folder / file_id

    @contextmanager
    def writing(self, file_id: str) -> Iterator[BinaryIO]:
        """Write a new content: it is on disk when the block ends, and removed if the block raises."""
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        part = self._folder / f"{file_id}{_PART}"
        try:
            with open(part, "wb", opener=_private) as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            part.rename(self.path(file_id))
            self._sync()
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def keep(self, file_id: str, source: BinaryIO) -> None:
        """Store all that can be read from `source` as a new content."""
        with self.writing(file_id) as out:
            shutil.copyfileobj(source, out, 1 << 20)

    def delete(self, file_id: str) -> None:
        """Delete a content; a missing one is no error."""
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self, known: Collection[str], older_than_s: float) -> None:
        """Delete contents that no record names and that nobody has written to for so long: a crash left them."""
        if not self._folder.is_dir():
            return
        latest = time.time() - older_than_s
        for path in self._folder.iterdir():
            try:
                if path.stat().st_mtime < latest and path.name not in known:
                    path.unlink()
            except FileNotFoundError:
                continue  # another replica deleted it first

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
