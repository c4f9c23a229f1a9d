"""Records of batches, who runs them, and the results of their lines: functions of a connection, for `Store.run`.

The runner that holds a batch's lease runs it, and writes to its record only while it holds the lease. So each line's
result is recorded once, even if another runner takes the batch over.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from typing_extensions import TypedDict

from router.store import files
from router.store.connection import Connection
from router.store.files import Page, StoredFile

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
BATCHES = """
CREATE TABLE IF NOT EXISTS batches (
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    metadata TEXT NOT NULL,
    output_seconds INTEGER NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    times TEXT NOT NULL DEFAULT '{}',
    errors TEXT NOT NULL DEFAULT '[]',
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    output_file_id TEXT,
    error_file_id TEXT,
    owner TEXT,
    owned_until REAL NOT NULL DEFAULT 0,
    open INTEGER GENERATED ALWAYS AS (
        CASE WHEN status IN ('validating', 'in_progress', 'finalizing', 'cancelling') THEN 1 ELSE 0 END
    ) VIRTUAL
);
CREATE INDEX IF NOT EXISTS batches_of_tenant ON batches (tenant, serial);
CREATE INDEX IF NOT EXISTS batches_open ON batches (open, serial);
CREATE TABLE IF NOT EXISTS results (
    batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    line INTEGER NOT NULL,
    ok INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)
) WITHOUT ROWID;
"""


class BatchFault(TypedDict):
    """An error in a batch's input. line: the line's number in the file from 1; null if it is about the whole file."""

    code: str
    message: str
    param: str | None
    line: int | None


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch's record.

    model: the name it was made for; only routers that serve it run it. output_seconds: how long its output files are
    kept. times: when it reached each status, by the field's name in the API. errors: why it is "failed". total,
    completed, failed: numbers of lines.
    """

    id: str
    tenant: str
    model: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str]
    output_seconds: int
    status: Status
    created_at: int
    expires_at: int
    times: dict[str, int]
    errors: list[BatchFault]
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None


_COLUMNS = ", ".join(field.name for field in fields(StoredBatch))
_JSON = ("metadata", "times", "errors")


@dataclass(frozen=True, slots=True)
class Result:
    """A line's result: its JSON in the output or the error file, and the tokens it took."""

    line: int
    ok: bool
    body: bytes
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A runner's claim to a batch."""

    batch_id: str
    owner: str


class LeaseLost(Exception):
    """Another runner has taken the batch over."""


class TooMany(Exception):
    """The tenant has as many unfinished batches as it may."""


def _batch(row: Any) -> StoredBatch:
    return StoredBatch(**{name: json.loads(row[name]) if name in _JSON else row[name] for name in row.keys()})  # noqa: SIM118


# Requests of clients


def create(db: Connection, batch: StoredBatch, most: int) -> None:
    """Create a batch; TooMany if the tenant has `most` unfinished ones."""
    (count,) = db.execute("SELECT count(*) FROM batches WHERE open = 1 AND tenant = ?", (batch.tenant,)).fetchone()
    if count >= most:
        raise TooMany
    values = [getattr(batch, field.name) for field in fields(batch)]
    values = [json.dumps(value) if isinstance(value, dict | list) else value for value in values]
    db.execute(f"INSERT INTO batches ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)


def find(db: Connection, tenant: str, batch_id: str) -> StoredBatch | None:
    """A tenant's batch."""
    row = db.execute(f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND tenant = ?", (batch_id, tenant)).fetchone()
    return _batch(row) if row is not None else None


def page(db: Connection, tenant: str, span: Page, prefix: str = "", *, newer: bool = False) -> list[StoredBatch] | None:
    """Batches, newest first; one more than `span.limit` if there are more; None without a batch `span.after`.

    prefix: of the ids, which differs between APIs. newer: return the batches made next after `span.after`.
    """
    where, values = "tenant = ? AND substr(id, 1, ?) = ?", [tenant, len(prefix), prefix]
    if span.after is not None:
        last = db.execute("SELECT serial FROM batches WHERE id = ? AND tenant = ?", (span.after, tenant)).fetchone()
        if last is None:
            return None
        where, values = f"{where} AND serial {'>' if newer else '<'} ?", [*values, last["serial"]]
    order = "ASC" if newer else "DESC"
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM batches WHERE {where} ORDER BY serial {order} LIMIT ?", (*values, span.limit + 1)
    )
    found = [_batch(row) for row in rows]
    return found[::-1] if newer else found


def delete(db: Connection, tenant: str, batch_id: str) -> None:
    """Delete a batch that has ended."""
    db.execute("DELETE FROM batches WHERE id = ? AND tenant = ? AND NOT open", (batch_id, tenant))


def cancel(db: Connection, tenant: str, batch_id: str, now: int) -> StoredBatch | None:
    """Cancel a batch. Returns its record, unchanged if it had ended already; None if there is no such batch."""
    db.execute(
        "UPDATE batches SET status = 'cancelling', times = json_set(times, '$.cancelling_at', ?) "
        "WHERE id = ? AND tenant = ? AND status IN ('validating', 'in_progress')",
        (now, batch_id, tenant),
    )
    return find(db, tenant, batch_id)


# Work of runners


def claim(
    db: Connection, owner: str, model: str, endpoints: Sequence[str], now: float, lease_s: float
) -> StoredBatch | None:
    """Lease the oldest unfinished batch of these models and endpoints that no runner holds; None if there is none."""
    among = ", ".join("?" * len(endpoints))
    row = db.execute(
        "UPDATE batches SET owner = ?, owned_until = ? WHERE id = (SELECT id FROM batches WHERE open = 1 AND model = ? "
        f"AND endpoint IN ({among}) AND owned_until < ? ORDER BY serial LIMIT 1) RETURNING {_COLUMNS}",
        (owner, now + lease_s, model, *endpoints, now),
    ).fetchone()
    return _batch(row) if row is not None else None


def renew(db: Connection, lease: Lease, now: float, lease_s: float) -> StoredBatch:
    """Extend the lease; the batch's record as it is now. LeaseLost if another runner holds it."""
    _own(db, lease)
    db.execute("UPDATE batches SET owned_until = ? WHERE id = ?", (now + lease_s, lease.batch_id))
    return _read(db, lease)


def release(db: Connection, lease: Lease) -> None:
    """Give the lease back: any runner may take the batch."""
    db.execute("UPDATE batches SET owned_until = 0 WHERE id = ? AND owner = ?", (lease.batch_id, lease.owner))


def begin(db: Connection, lease: Lease, total: int, now: int) -> StoredBatch:
    """Record that the input is valid and has `total` lines, unless the batch was cancelled meanwhile. LeaseLost."""
    _own(db, lease)
    db.execute(
        "UPDATE batches SET status = 'in_progress', total = ?, times = json_set(times, '$.in_progress_at', ?) "
        "WHERE id = ? AND status = 'validating'",
        (total, now, lease.batch_id),
    )
    return _read(db, lease)


def fail(db: Connection, lease: Lease, errors: Sequence[BatchFault], now: int) -> None:
    """Record that the batch can't be run, for these reasons. LeaseLost."""
    _own(db, lease)
    db.execute(
        "UPDATE batches SET status = 'failed', errors = ?, times = json_set(times, '$.failed_at', ?) WHERE id = ?",
        (json.dumps(list(errors)), now, lease.batch_id),
    )
    db.execute("DELETE FROM results WHERE batch_id = ?", (lease.batch_id,))


def record(db: Connection, lease: Lease, results: Sequence[Result]) -> None:
    """Record results of lines that have none yet. LeaseLost."""
    _own(db, lease)
    for result in results:
        db.execute("INSERT INTO results VALUES (?, ?, ?, ?)", (lease.batch_id, result.line, result.ok, result.body))
    done = sum(result.ok for result in results)
    db.execute(
        "UPDATE batches SET completed = completed + ?, failed = failed + ?, input_tokens = input_tokens + ?, "
        "cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ? WHERE id = ?",
        (
            done,
            len(results) - done,
            sum(r.input_tokens for r in results),
            sum(r.cached_tokens for r in results),
            sum(r.output_tokens for r in results),
            lease.batch_id,
        ),
    )


def lines_done(db: Connection, batch_id: str) -> set[int]:
    """Numbers of the lines that have a result."""
    return {row["line"] for row in db.execute("SELECT line FROM results WHERE batch_id = ?", (batch_id,))}


def results(db: Connection, batch_id: str, ok: bool, after: int, limit: int) -> list[tuple[int, bytes]]:
    """Up to this many results after line `after`, in order, as (line, body)."""
    rows = db.execute(
        "SELECT line, body FROM results WHERE batch_id = ? AND ok = ? AND line > ? ORDER BY line LIMIT ?",
        (batch_id, ok, after, limit),
    )
    return [(row["line"], row["body"]) for row in rows]


def finalize(db: Connection, lease: Lease, now: int) -> StoredBatch:
    """Record that every line has its result, unless the batch was cancelled meanwhile. LeaseLost."""
    _own(db, lease)
    db.execute(
        "UPDATE batches SET status = 'finalizing', times = json_set(times, '$.finalizing_at', ?) "
        "WHERE id = ? AND status = 'in_progress'",
        (now, lease.batch_id),
    )
    return _read(db, lease)


def finish(
    db: Connection,
    lease: Lease,
    status: Literal["completed", "expired", "cancelled"],
    output: StoredFile | None,
    error: StoredFile | None,
    now: int,
) -> None:
    """Record that the batch has ended and its files are written. LeaseLost."""
    _own(db, lease)
    for file in (output, error):
        if file is not None:
            files.add(db, file, None)
    db.execute(
        f"UPDATE batches SET status = ?, output_file_id = ?, error_file_id = ?, "
        f"times = json_set(times, '$.{status}_at', ?) WHERE id = ?",
        (status, output and output.id, error and error.id, now, lease.batch_id),
    )
    db.execute("DELETE FROM results WHERE batch_id = ?", (lease.batch_id,))


def forget(db: Connection, before: int) -> None:
    """Delete the records of batches that were made before this time and have ended."""
    db.execute("DELETE FROM batches WHERE open = 0 AND created_at < ?", (before,))


def _read(db: Connection, lease: Lease) -> StoredBatch:
    return _batch(db.execute(f"SELECT {_COLUMNS} FROM batches WHERE id = ?", (lease.batch_id,)).fetchone())


def _own(db: Connection, lease: Lease) -> None:
    # An expired lease that nobody took is still this runner's.
    held = db.execute("SELECT 1 FROM batches WHERE id = ? AND owner = ?", (lease.batch_id, lease.owner)).fetchone()
    if held is None:
        raise LeaseLost(lease.batch_id)
