"""The folder of a worker's disk tier, and the files that an earlier worker left there."""

import fcntl
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from wire.snapshot_file import SnapshotFile, SnapshotFileError, read_head
from workers.cache.disk import Place

SUFFIX = ".safetensors"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Found:
    """A complete snapshot that was found. file: its path without the rank. bytes: of all ranks' files."""

    file: str
    content: SnapshotFile
    bytes: int


@dataclass(frozen=True, slots=True)
class Left:
    """The files that an earlier worker left.

    foreign: snapshots of other weights, layouts or dtypes, which are left alone. damaged: the number of files that were
    no complete snapshots and are erased.
    """

    found: tuple[Found, ...]
    foreign: tuple[SnapshotFile, ...]
    damaged: int


def rank_file(file: str, rank: int, tp: int) -> str:
    """The path of one rank's part of a snapshot; a file of all ranks is named as it is."""
    return file if file.endswith(SUFFIX) else f"{file}.rank{rank}of{tp}{SUFFIX}"


class DiskFolder:
    """`worker-0`, `worker-1`, … below the configured folder: the first one that no other worker of the host uses.

    A restarted worker so finds its own files. Folders have mode 0700.
    """

    def __init__(self, below: str) -> None:
        """OSError if the folder can't be made."""
        number = 0
        while (lock := _claim(Path(below) / f"worker-{number}")) is None:
            number += 1
        self.path = Path(below) / f"worker-{number}"
        self._lock = lock

    def close(self) -> None:
        """Release the folder for another worker."""
        os.close(self._lock)

    def look(self, place: Place, tp: int) -> Left:
        """Read what the folder holds. Files that were incomplete when their worker ended are erased."""
        ranks: dict[str, list[Path]] = defaultdict(list)
        for path in self.path.iterdir():
            if path.name.endswith(SUFFIX):
                ranks[path.name.rsplit(".", 2)[0]].append(path)
            elif path.name.endswith(".partial"):
                path.unlink(missing_ok=True)
        own = (place.weights_id, place.layout, place.state_dtype)
        found: list[Found] = []
        foreign: list[SnapshotFile] = []
        damaged = 0
        for name, paths in sorted(ranks.items()):
            file = str(self.path / name)
            try:
                heads = [read_head(path) for path in sorted(paths)]
            except SnapshotFileError:
                heads = []
            head = heads[0].head if heads else None
            if head is None:
                damaged += 1
                _erase(paths)
            elif (head.weights_id, head.layout, head.state_dtype) != own or not _made_by(paths, tp):
                foreign.append(heads[0])
            elif sorted(paths) != sorted(Path(rank_file(file, rank, tp)) for rank in range(tp)):
                damaged += 1
                _erase(paths)
            else:
                found.append(Found(file, heads[0], sum(one.bytes for one in heads)))
        return Left(tuple(found), tuple(foreign), damaged)


def _made_by(paths: list[Path], tp: int) -> bool:
    """Whether a worker with so many ranks wrote the files."""
    return all(path.name.endswith(f"of{tp}{SUFFIX}") for path in paths)


def _erase(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _claim(folder: Path) -> int | None:
    """Lock the folder, which is created if needed; None if another process holds the lock."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
