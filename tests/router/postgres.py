"""Runs a real PostgreSQL on a Unix socket."""

import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from router.store.postgres import Postgres

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
MISSING = "no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql (`.ci/run` does)"


class Server:
    """A running server. folder: of its data and socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql://tester@/postgres?host={folder}"

    def run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root.
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*user, str(_BINARIES[-1] / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=120, cwd="/")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c fsync=off -k {self.folder}"
        self.run("pg_ctl", "-w", "-t", "90", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def records(self, url: str | None, path: Path, schema: str) -> Postgres:
        """The records of a PostgreSQL database, with separate tables for each path."""
        apart = f"t{zlib.crc32(str(path).encode()):x}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {apart}".encode())
        return Postgres(f"{self.url}&options=-csearch_path%3D{apart}", schema, path.stem)


def there() -> bool:
    """Whether PostgreSQL is installed."""
    return bool(_BINARIES)


@contextmanager
def postgres() -> Iterator[Server]:
    """Run a server."""
    server = Server(Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")))
    if os.getuid() == 0:
        shutil.chown(server.folder, "postgres")
    try:
        server.run("initdb", "-U", "tester", "-A", "trust", "--no-sync")
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)
