"""Keeps a cache consistent: one fetch at a time, a record of complete fetches, and a check of disk space in advance."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.fetch.errors import FetchError


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock that excludes all other processes of this host, and of hosts that share the cache."""
    from filelock import FileLock  # noqa: PLC0415 - `ling` commands that fetch nothing don't wait for it

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        held.acquire()
    except OSError as error:
        raise disk_error(error, lock.parent) from error
    try:
        yield
    finally:
        held.release()


def is_whole(record: Path, folder: Path) -> bool:
    """Whether a fetch was completed and its files still have the recorded sizes. Nothing else is read."""
    try:
        sizes: Mapping[str, int] = json.loads(record.read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def record_whole(record: Path, folder: Path, names: list[str]) -> None:
    """Record that these files were fetched and verified."""
    sizes = {name: (folder / name).stat().st_size for name in names}
    # Written to another name and then renamed, so that readers without the lock see all of it or nothing.
    aside = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(sizes))
        aside.rename(record)
    except OSError as error:
        raise disk_error(error, record.parent) from error


def check_room(folder: Path, need: int, what: str) -> None:
    """FetchError unless the disk of `folder`, which need not exist yet, has `need` bytes free."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise FetchError(
            f"model: {what} needs {need / 1e9:.2f} GB more in {folder}, whose disk has {free / 1e9:.2f} GB free; "
            "free some, or set model_cache to a larger one"
        )


def disk_error(error: OSError, folder: Path) -> FetchError:
    """Make the error for a failed write to the cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError(f"model: the disk of {folder} is full; free some, or set model_cache to a larger one")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FetchError(
            f"model: {folder} can't be written, and does not hold the whole checkpoint ({error.strerror}); "
            "set model_cache to a folder that can be"
        )
    return FetchError(f"model: {folder}: {error}")
