"""Records of requests that failed at the workers, so that they can be saved: functions of a connection."""

from dataclasses import dataclass

from router.store.connection import Connection
from router.store.sessions import marks_read, marks_text
from wire.protocol import Mark

FAILED = """
CREATE TABLE IF NOT EXISTS failed_requests (
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    request_id TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    sampling BLOB NOT NULL,
    marks TEXT NOT NULL,
    error TEXT NOT NULL,
    expires_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS failed_by_id ON failed_requests (request_id);
"""
# The most failed requests of a tenant; the oldest are deleted first.
_MOST = 100


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request that failed. token_ids: packed, the prompt's and those generated. sampling: `SamplingParams` as JSON.

    marks: names of the snapshots that workers may keep of it, the longest first.
    """

    token_ids: bytes
    prompt_tokens: int
    sampling: bytes
    marks: tuple[Mark, ...]
    error: str


def keep(db: Connection, tenant: str, request_id: str, failed: FailedRequest, now: int, expires: int) -> None:
    """Record a failed request; it replaces an earlier one of the same id, and expired ones are deleted."""
    db.execute("DELETE FROM failed_requests WHERE expires_at <= ?", (now,))
    db.execute("DELETE FROM failed_requests WHERE tenant = ? AND request_id = ?", (tenant, request_id))
    values = (tenant, request_id, failed.token_ids, failed.prompt_tokens, failed.sampling, marks_text(failed.marks))
    db.execute(
        "INSERT INTO failed_requests "
        "(tenant, request_id, token_ids, prompt_tokens, sampling, marks, error, expires_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, failed.error, expires),
    )
    db.execute(
        "DELETE FROM failed_requests WHERE tenant = ? AND serial NOT IN "
        "(SELECT serial FROM failed_requests WHERE tenant = ? ORDER BY serial DESC LIMIT ?)",
        (tenant, tenant, _MOST),
    )


def find(db: Connection, tenant: str | None, request_id: str, now: int) -> FailedRequest | None:
    """The latest failed request with an id, of one tenant, or of any with None."""
    row = db.execute(
        "SELECT token_ids, prompt_tokens, sampling, marks, error FROM failed_requests "
        f"WHERE request_id = ? AND expires_at > ?{'' if tenant is None else ' AND tenant = ?'} "
        "ORDER BY serial DESC LIMIT 1",
        (request_id, now) if tenant is None else (request_id, now, tenant),
    ).fetchone()
    if row is None:
        return None
    return FailedRequest(
        bytes(row["token_ids"]), row["prompt_tokens"], bytes(row["sampling"]), marks_read(row["marks"]), row["error"]
    )
