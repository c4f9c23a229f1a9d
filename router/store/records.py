"""Where records are: a SQLite file that the routers of a host share, or a PostgreSQL for those of several hosts."""

from pathlib import Path

from router.store.connection import Records
from router.store.database import Database


def records(url: str | None, path: Path, schema: str) -> Records:
    """The database at a URL, or else in a file; DatabaseError at the first work, if it can't be reached."""
    if url is None:
        return Database(path, schema)
    from router.store.postgres import Postgres  # noqa: PLC0415 - routers of one host load nothing of it

    return Postgres(url, schema, path.stem)
