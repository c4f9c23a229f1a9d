"""Checks the checksums of fetched files. Damaged files are removed, so that the next fetch brings them again."""

import hashlib
import os
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.fetch.errors import FetchError
from cluster.fetch.watch import Size, Tell, watched

_PIECE_BYTES = 1 << 20
_THREADS = min(8, os.cpu_count() or 1)
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def check_sums(digests: Mapping[Path, str], stage: str, tell: Tell) -> None:
    """Check files; FetchError for the first one with another digest. 64 hex digits are SHA-256, 40 git's of a blob.

    Files with any other kind of digest are not read.
    """
    known = {path: digest for path, digest in digests.items() if _DIGEST.fullmatch(digest)}
    if not known:
        return
    sizes = {path: path.stat().st_size for path in known}
    done = _Count()

    def check(path: Path) -> None:
        if (found := _digest(path, known[path], sizes[path], done)) != known[path]:
            # For a link into the hub library's cache, remove the file that it names too.
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise FetchError(
                f"model: {path.name} came damaged: its checksum is {found}, not {known[path]}; it was removed, "
                "fetch again"
            )

    with (
        watched(stage, Size(0, sum(sizes.values())), lambda: Size(0, done.value), tell),
        ThreadPoolExecutor(_THREADS, thread_name_prefix="checksum") as pool,
    ):
        for future in [pool.submit(check, path) for path in known]:
            future.result()


class _Count:
    """Bytes read so far, by all threads."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.value += count


def _digest(path: Path, expected: str, size: int, done: _Count) -> str:
    digest = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            done.add(len(piece))
    return digest.hexdigest()
