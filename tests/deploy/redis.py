"""Runs a real Redis with a password on loopback."""

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
    """Run Redis; yields its HOST:PORT."""
    assert BINARY is not None
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", PASSWORD, "--dir", str(folder)]
    process = subprocess.Popen([BINARY, *options, "--save", "", "--loglevel", "warning"])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
