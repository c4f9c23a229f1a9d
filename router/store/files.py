"""Records of files: functions of a connection, for `Store.run`."""

import uuid
from dataclasses import dataclass
from typing import Literal

from router.store.connection import Connection

FILES = """
CREATE TABLE IF NOT EXISTS files (
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS files_of_tenant ON files (tenant, serial);
"""
_COLUMNS = "id, tenant, filename, purpose, bytes, created_at, expires_at"
# Inputs of batches that may still read them.
_IN_USE = "SELECT input_file_id FROM batches WHERE open = 1"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's record. purpose: "batch" for a client's upload, "batch_output" for a batch's results. Times: seconds."""

    id: str
    tenant: str
    filename: str
    purpose: Literal["batch", "batch_output"]
    bytes: int
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list to return. after: the id of the last entry that the client has."""

    after: str | None
    limit: int
    newest_first: bool = True


class InUse(Exception):
    """A batch still reads the file."""


class NoRoom(Exception):
    """The tenant's files would exceed the limit; the message is the number of bytes that are stored now."""


def new_file_id() -> str:
    """A new, unique file id."""
    return f"file-{uuid.uuid4().hex}"


def add(db: Connection, file: StoredFile, limit: int | None) -> None:
    """Add a record; NoRoom if the tenant's files would exceed `limit` bytes together. None: no limit."""
    if limit is not None:
        (held,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ?", (file.tenant,)).fetchone()
        if held + file.bytes > limit:
            raise NoRoom(str(held))
    values = (file.id, file.tenant, file.filename, file.purpose, file.bytes, file.created_at, file.expires_at)
    db.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def find(db: Connection, tenant: str, file_id: str, now: int) -> StoredFile | None:
    """A tenant's file, unless it has expired. A file that a batch still reads does not expire."""
    where = f"id = ? AND tenant = ? AND (expires_at > ? OR id IN ({_IN_USE}))"
    row = db.execute(f"SELECT {_COLUMNS} FROM files WHERE {where}", (file_id, tenant, now)).fetchone()
    return StoredFile(**row) if row is not None else None


def page(db: Connection, tenant: str, purpose: str | None, span: Page, now: int) -> list[StoredFile] | None:
    """Files of a tenant; one more than `span.limit` if there are more; None if the tenant has no file `span.after`."""
    where, values = "tenant = ? AND expires_at > ?", [tenant, now]
    if purpose is not None:
        where, values = f"{where} AND purpose = ?", [*values, purpose]
    if span.after is not None:
        last = db.execute("SELECT serial FROM files WHERE id = ? AND tenant = ?", (span.after, tenant)).fetchone()
        if last is None:
            return None
        where, values = f"{where} AND serial {'<' if span.newest_first else '>'} ?", [*values, last["serial"]]
    order = "DESC" if span.newest_first else "ASC"
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM files WHERE {where} ORDER BY serial {order} LIMIT ?", (*values, span.limit + 1)
    )
    return [StoredFile(**row) for row in rows]


def delete(db: Connection, tenant: str, file_id: str, now: int) -> bool:
    """Delete a record; False if there is none, InUse if a batch still reads it. The caller then deletes the content."""
    if find(db, tenant, file_id, now) is None:
        return False
    used = db.execute("SELECT id FROM batches WHERE open = 1 AND input_file_id = ?", (file_id,)).fetchone()
    if used is not None:
        raise InUse(used["id"])
    db.execute("DELETE FROM files WHERE id = ?", (file_id,))
    return True


def expire(db: Connection, now: int) -> list[str]:
    """Delete the records of expired files that no batch reads; returns their ids."""
    rows = db.execute(f"DELETE FROM files WHERE expires_at <= ? AND id NOT IN ({_IN_USE}) RETURNING id", (now,))
    return [row["id"] for row in rows]


def known(db: Connection) -> set[str]:
    """Ids of all files."""
    return {row["id"] for row in db.execute("SELECT id FROM files")}
