"""Records of sessions and their leases: functions of a connection, for `Records.run`.

A turn is one request; it holds the session's lease while it runs. A session is invisible until its first turn has
ended.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from router.store.connection import Connection
from router.store.files import Page
from wire.protocol import Mark

SESSIONS = """
CREATE TABLE IF NOT EXISTS sessions (
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    scope TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    tokens INTEGER NOT NULL,
    marks TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    sampling BLOB NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    parent TEXT,
    last_request TEXT,
    owner TEXT,
    owned_until REAL NOT NULL DEFAULT 0,
    UNIQUE (tenant, id)
);
CREATE INDEX IF NOT EXISTS sessions_of_tenant ON sessions (tenant, serial);
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires_at);
"""
_COLUMNS = "id, scope, tokens, marks, created_at, expires_at, parent, last_request, owner, owned_until"
# The condition for a session that its tenant sees.
_THERE = "tenant = ? AND expires_at > ? AND tokens > 0"


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session's record without its token ids.

    marks: names of snapshots that workers may keep of it, longest first.
    """

    id: str
    scope: str
    tokens: int
    marks: tuple[Mark, ...]
    created_at: int
    expires_at: int
    parent: str | None
    last_request: str | None
    owner: str | None
    owned_until: float


@dataclass(frozen=True, slots=True)
class End:
    """The new end of a session after a turn.

    token_ids: packed; the first `prompt_tokens` are the turn's prompt. sampling: the `SamplingParams` of the rest, as
    JSON.
    """

    token_ids: bytes
    prompt_tokens: int
    sampling: bytes
    marks: tuple[Mark, ...]
    request_id: str


@dataclass(frozen=True, slots=True)
class Standing:
    """The end of a session. serial: later sessions have higher ones."""

    serial: int
    tenant: str
    id: str
    marks: tuple[Mark, ...]
    expires_at: int


class Busy(Exception):
    """Another turn of the session is running."""


class Full(Exception):
    """The tenant has as many sessions as it may."""


class Taken(Exception):
    """There is a session with this name; the message is the name."""


def find(db: Connection, tenant: str, session_id: str, now: int) -> StoredSession | None:
    """A tenant's session."""
    row = db.execute(f"SELECT {_COLUMNS} FROM sessions WHERE {_THERE} AND id = ?", (tenant, now, session_id)).fetchone()
    return _stored(row) if row is not None else None


def token_ids(db: Connection, tenant: str, session_id: str) -> bytes:
    """All tokens of a session, packed."""
    row = db.execute("SELECT token_ids FROM sessions WHERE tenant = ? AND id = ?", (tenant, session_id)).fetchone()
    return bytes(row["token_ids"]) if row is not None else b""


def last_turn(db: Connection, tenant: str, session_id: str, now: int) -> End | None:
    """The last turn of a tenant's session; None if there is none."""
    row = db.execute(
        f"SELECT token_ids, marks, prompt_tokens, sampling, last_request FROM sessions WHERE {_THERE} AND id = ?",
        (tenant, now, session_id),
    ).fetchone()
    if row is None:
        return None
    marks = marks_read(row["marks"])
    return End(bytes(row["token_ids"]), row["prompt_tokens"], bytes(row["sampling"]), marks, row["last_request"])


def page(db: Connection, tenant: str, span: Page, now: int) -> list[StoredSession] | None:
    """Sessions, newest first; one more than `span.limit` if there are more; None without a session `span.after`."""
    where, values = _THERE, [tenant, now]
    if span.after is not None:
        last = db.execute("SELECT serial FROM sessions WHERE id = ? AND tenant = ?", (span.after, tenant)).fetchone()
        if last is None:
            return None
        where, values = f"{where} AND serial < ?", [*values, last["serial"]]
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE {where} ORDER BY serial DESC LIMIT ?", (*values, span.limit + 1)
    )
    return [_stored(row) for row in rows]


def standings(db: Connection, after: int, limit: int, now: int) -> list[Standing]:
    """The ends of the first `limit` sessions, of all tenants, whose serial is above `after`."""
    rows = db.execute(
        "SELECT serial, tenant, id, marks, expires_at FROM sessions WHERE serial > ? AND expires_at > ? AND tokens > 0 "
        "ORDER BY serial LIMIT ?",
        (after, now, limit),
    )
    return [Standing(**{**dict(row), "marks": marks_read(row["marks"])}) for row in rows]


def take(
    db: Connection,
    tenant: str,
    session_id: str,
    owner: str,
    scope: str,
    most: int,
    now: float,
    until: float,
    earlier: str | None = None,
) -> StoredSession:
    """Take the lease of a session for a turn; a missing session is created. Busy, Full.

    earlier: what the names of owners begin with from whom the lease is taken although they hold it.
    """
    _expire(db, now)
    row = db.execute(f"SELECT {_COLUMNS} FROM sessions WHERE tenant = ? AND id = ?", (tenant, session_id)).fetchone()
    if row is None:
        _room(db, tenant, 1, most)
        # A new session expires with its lease unless a turn ends well.
        values = (tenant, session_id, scope, b"", int(now), int(until) + 1, owner, until)
        db.execute(
            "INSERT INTO sessions (tenant, id, scope, token_ids, tokens, marks, created_at, expires_at, owner, "
            "owned_until) VALUES (?, ?, ?, ?, 0, '[]', ?, ?, ?, ?)",
            values,
        )
        return StoredSession(session_id, scope, 0, (), int(now), int(until) + 1, None, None, owner, until)
    found = _stored(row)
    if found.owner is not None and found.owned_until > now and not (earlier and found.owner.startswith(earlier)):
        raise Busy
    where = "WHERE tenant = ? AND id = ?"
    db.execute(f"UPDATE sessions SET owner = ?, owned_until = ? {where}", (owner, until, tenant, session_id))
    return found


def renew(db: Connection, owners: Sequence[str], until: float) -> None:
    """Extend the leases of turns. New sessions expire with their leases."""
    for owner in owners:
        db.execute("UPDATE sessions SET owned_until = ? WHERE owner = ?", (until, owner))
        db.execute("UPDATE sessions SET expires_at = ? WHERE owner = ? AND tokens = 0", (int(until) + 1, owner))


def end(db: Connection, owner: str, scope: str, reached: End, expires: int) -> bool:
    """Store the result of a turn that ended well; False if its session was deleted or another turn took the lease."""
    values = (
        scope, reached.token_ids, len(reached.token_ids) // 4, marks_text(reached.marks), reached.prompt_tokens,
        reached.sampling, expires,
    )  # fmt: skip
    done = db.execute(
        "UPDATE sessions SET scope = ?, token_ids = ?, tokens = ?, marks = ?, prompt_tokens = ?, sampling = ?, "
        "expires_at = ?, last_request = ?, "
        "owner = NULL, owned_until = 0 WHERE owner = ?",
        (*values, reached.request_id, owner),
    )
    return done.rowcount > 0


def release(db: Connection, owner: str, expires: int | None = None) -> None:
    """End a turn without a change: the session is kept until `expires`; a new session is deleted."""
    db.execute("DELETE FROM sessions WHERE owner = ? AND tokens = 0", (owner,))
    if expires is not None:
        db.execute("UPDATE sessions SET expires_at = ? WHERE owner = ?", (expires, owner))
    db.execute("UPDATE sessions SET owner = NULL, owned_until = 0 WHERE owner = ?", (owner,))


def fork(
    db: Connection, tenant: str, session_id: str, ids: Sequence[str], most: int, now: int, expires: int
) -> list[StoredSession] | None:
    """Create sessions that continue from the end of one; None if that does not exist.

    On Taken and Full none is created.
    """
    _expire(db, now)
    if find(db, tenant, session_id, now) is None:
        return None
    _room(db, tenant, len(ids), most)
    for new in ids:
        if db.execute("SELECT 1 FROM sessions WHERE tenant = ? AND id = ?", (tenant, new)).fetchone() is not None:
            raise Taken(new)
        db.execute(
            "INSERT INTO sessions (tenant, id, scope, token_ids, tokens, marks, prompt_tokens, sampling, created_at, "
            "expires_at, parent, last_request) SELECT tenant, ?, scope, token_ids, tokens, marks, prompt_tokens, "
            "sampling, ?, ?, id, last_request FROM sessions "
            "WHERE tenant = ? AND id = ?",
            (new, now, expires, tenant, session_id),
        )
    made = [find(db, tenant, new, now) for new in ids]
    return [one for one in made if one is not None]


def enter(
    db: Connection, tenant: str, session_id: str, scope: str, at: End, most: int, now: int, expires: int
) -> StoredSession:
    """Create a session that ends where another cluster's ended; Taken, Full."""
    _expire(db, now)
    if db.execute("SELECT 1 FROM sessions WHERE tenant = ? AND id = ?", (tenant, session_id)).fetchone() is not None:
        raise Taken(session_id)
    _room(db, tenant, 1, most)
    values = (tenant, session_id, scope, at.token_ids, len(at.token_ids) // 4, marks_text(at.marks), at.prompt_tokens)
    db.execute(
        "INSERT INTO sessions (tenant, id, scope, token_ids, tokens, marks, prompt_tokens, sampling, created_at, "
        "expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, at.sampling, now, expires),
    )
    made = find(db, tenant, session_id, now)
    assert made is not None
    return made


def delete(db: Connection, tenant: str, session_id: str, now: float) -> bool:
    """Delete a session; False if there is none; Busy while a turn runs."""
    found = find(db, tenant, session_id, int(now))
    if found is None:
        return False
    if found.owner is not None and found.owned_until > now:
        raise Busy
    db.execute("DELETE FROM sessions WHERE tenant = ? AND id = ?", (tenant, session_id))
    return True


def _expire(db: Connection, now: float) -> None:
    db.execute("DELETE FROM sessions WHERE expires_at <= ? AND owned_until <= ?", (int(now), now))


def _room(db: Connection, tenant: str, more: int, most: int) -> None:
    (count,) = db.execute("SELECT count(*) FROM sessions WHERE tenant = ?", (tenant,)).fetchone()
    if count + more > most:
        raise Full


def marks_text(marks: Sequence[Mark]) -> str:
    """Encode marks for a record."""
    return json.dumps([[mark.position, mark.digest.hex()] for mark in marks])


def marks_read(text: str) -> tuple[Mark, ...]:
    """Decode marks from a record."""
    return tuple(Mark(position, bytes.fromhex(digest)) for position, digest in json.loads(text))


def _stored(row: object) -> StoredSession:
    values = dict(row)  # type: ignore[call-overload]
    values["marks"] = marks_read(values["marks"])
    return StoredSession(**values)
