"""Opens the database of records: a SQLite file that one host's routers share, or PostgreSQL for routers of several
hosts.
"""

from pathlib import Path

from router.store.connection import Records
from router.store.database import Database


def records(url: str | None, path: Path, schema: str) -> Records:
    """The database at a URL, or else in a file. DatabaseError comes with the first work if it can't be reached."""
    if url is None:
        return Database(path, schema)
    from router.store.postgres import Postgres  # noqa: PLC0415 - routers of one host load nothing of it

    return Postgres(url, schema, path.stem)
