"""A real Redis with a password, on loopback, for as long as a test needs it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.serving import free_port

BINARY = shutil.which("redis-server")
PASSWORD = "a-password"


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """HOST:PORT of it."""
    assert BINARY is not None
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", PASSWORD, "--dir", str(folder)]
    process = subprocess.Popen([BINARY, *options, "--save", "", "--loglevel", "warning"])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
