"""A folder that the routers of one host share, and that the last of them removes."""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path


class SharedFolder:
    """A folder that the first to open it creates. `close` removes it unless another process or object has it open."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        """Remove the folder if nobody else has it open; files that can't be removed are left."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
