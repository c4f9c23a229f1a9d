"""The folder of a worker's disk tier, and the files that earlier workers left there and beside it."""

import contextlib
import fcntl
import math
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wire.snapshot_file import SnapshotFile, SnapshotFileError, read_head
from wire.tokens import TokenIds
from workers.cache.disk import Place

SUFFIX = ".safetensors"
_LOCK = "lock"
_FOLDER = "worker-"
# A worker that ended starts again within so many seconds, and finds its files; else others may have them.
_GONE_S = 600.0


@dataclass(frozen=True, slots=True)
class Found:
    """A file of all ranks that was found, with latents [start, position).

    file: its path without the rank. before: the name of the file with what comes before; "" for nothing. token_ids: all
    of them, from the first on. latents, state: bytes of all ranks; state is 0 if it has none. age_s: since its last
    use.
    """

    file: str
    before: str
    start: int
    position: int
    token_ids: TokenIds
    scope: str
    latents: int
    state: int
    age_s: float

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self.file.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Left:
    """The files that an earlier worker left, each after the one that it continues.

    foreign: those of other weights, layouts or dtypes, or of other ranks, which are left alone. damaged: the number of
    files that were no complete snapshots and are erased.
    """

    found: tuple[Found, ...]
    foreign: tuple[Found, ...]
    damaged: int


def rank_file(file: str, rank: int, tp: int) -> str:
    """The path of one rank's part of a snapshot; a file of all ranks is named as it is."""
    return file if file.endswith(SUFFIX) else f"{file}.rank{rank}of{tp}{SUFFIX}"


class DiskFolder:
    """`worker-0`, `worker-1`, … below the configured folder: the first one that no other worker of the host uses.

    A restarted worker so finds its own files. Folders have mode 0700. tp: ranks. ttl_s: files are kept so long after
    their last use, which is their time of modification.
    """

    def __init__(self, below: str, tp: int = 1, ttl_s: float = math.inf) -> None:
        """OSError if the folder can't be made."""
        number = 0
        while (lock := _claim(Path(below) / f"{_FOLDER}{number}")) is None:
            number += 1
        self.path = Path(below) / f"{_FOLDER}{number}"
        self._lock = lock
        self._tp = tp
        self._ttl_s = ttl_s
        self._foreign: list[Path] = []
        os.utime(lock)

    def close(self) -> None:
        """Release the folder for another worker."""
        os.close(self._lock)

    def place(self, weights_id: str, layout: str, state_dtype: str) -> Place:
        """Where a worker of these weights writes its files."""
        return Place(str(self.path), weights_id, layout, state_dtype, f"{secrets.token_hex(4)}-")

    def look(self, place: Place) -> Left:
        """Read what the folder holds. What was incomplete when its worker ended is erased, and what has expired."""
        left = _look(self.path, place, self._tp, self._ttl_s)
        self._foreign = [path for one in left.foreign for path in self.path.glob(f"{one.name}.*{SUFFIX}")]
        return left

    def use(self, file: str) -> None:
        """Note that a file, named without the rank, was used just now."""
        for rank in range(self._tp):
            with contextlib.suppress(OSError):  # it is yet to be written, or is gone
                os.utime(rank_file(file, rank, self._tp))

    def tidy(self, place: Place, room: int) -> tuple[Found, ...]:
        """Erase what has expired and none of this worker's, and take over up to `room` bytes of workers that are gone.

        Returns these files, each after the one that it continues. To be called each minute.
        """
        os.utime(self._lock)
        for path in self._foreign:
            if _age(path) > self._ttl_s:
                path.unlink(missing_ok=True)
        came: list[Found] = []
        for folder in sorted(self.path.parent.glob(f"{_FOLDER}*")):
            if folder == self.path or _age(folder / _LOCK) < _GONE_S or (lock := _claim(folder)) is None:
                continue
            try:
                left = _look(folder, place, self._tp, self._ttl_s)
                taken = _fitting(left.found, room - sum(one.latents + one.state for one in came))
                came += [self._take(found) for found in taken]
            finally:
                os.close(lock)
        return tuple(came)

    def _take(self, found: Found) -> Found:
        file = str(self.path / found.name)
        for rank in range(self._tp):
            os.replace(rank_file(found.file, rank, self._tp), rank_file(file, rank, self._tp))
        return replace(found, file=file)


def _look(folder: Path, place: Place, tp: int, ttl_s: float) -> Left:
    ranks: dict[str, list[Path]] = defaultdict(list)
    for path in folder.iterdir():
        if path.name.endswith(SUFFIX):
            ranks[path.name.rsplit(".", 2)[0]].append(path)
        elif path.name.endswith(".partial"):
            path.unlink(missing_ok=True)
    heads: dict[str, list[SnapshotFile]] = {}
    damaged = 0
    for name, paths in ranks.items():
        with contextlib.suppress(SnapshotFileError):
            heads[name] = [read_head(path, may_be_cut=True) for path in sorted(paths)]
    there: dict[str, Found] = {}
    own: dict[str, bool] = {}
    for name in sorted(ranks, key=lambda name: (heads[name][0].head.position if name in heads else 0, name)):
        head = heads[name][0].head if name in heads else None
        above = there.get(head.before) if head is not None else None
        if head is None or head.start != (above.position if above is not None else 0):
            damaged += 1
            _erase(ranks[name])
            continue
        mine = (head.weights_id, head.layout, head.state_dtype) == (place.weights_id, place.layout, place.state_dtype)
        mine = mine and (above is None or own[above.name])
        own[name] = mine and all(path.name.endswith(f"of{tp}{SUFFIX}") for path in ranks[name])
        if own[name] and len(ranks[name]) < tp:
            damaged += 1
            _erase(ranks[name])
            continue
        ids = heads[name][0].token_ids.packed
        size, latents = sum(one.bytes for one in heads[name]), sum(one.stateless for one in heads[name])
        state = size - latents if head.states and not any(one.cut for one in heads[name]) else 0
        there[name] = Found(
            str(folder / name), head.before, head.start, head.position,
            TokenIds((above.token_ids.packed if above is not None else b"") + ids), head.scope, latents, state,
            min(map(_age, ranks[name])),
        )  # fmt: skip
    kept = {name for one in there.values() if one.state and one.age_s <= ttl_s for name in _line(one, there)}
    for name in set(there) - kept:
        _erase(ranks[name])
    found = [one for name, one in there.items() if name in kept]
    return Left(tuple(one for one in found if own[one.name]), tuple(one for one in found if not own[one.name]), damaged)


def _line(of: Found, there: Mapping[str, Found]) -> list[str]:
    """The names of the files that together hold a snapshot, the last one first."""
    out = [of.name]
    while of.before:
        of = there[of.before]
        out.append(of.name)
    return out


def _fitting(found: Sequence[Found], room: int) -> list[Found]:
    """The files of as many snapshots as fit, those that were used last."""
    there = {one.name: one for one in found}
    taken: set[str] = set()
    for one in sorted((one for one in found if one.state), key=lambda one: one.age_s):
        more = set(_line(one, there)) - taken
        size = sum(there[name].latents + there[name].state for name in more)
        if size <= room:
            room -= size
            taken |= more
    return [one for one in found if one.name in taken]


def _age(path: Path) -> float:
    """Seconds since the file's last use; 0 if there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


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
