"""The tables of kept responses, and what is done to them within one transaction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic_core import from_json, to_json

from router.api.answers.items import KeptItem
from router.api.responses.answers import Response, ResponseError
from router.api.responses.events import closing
from router.store.connection import Connection

# A router that has not renewed its lease for so long has ended, and with it what it ran.
LEASE_S = 10.0
SCHEMA = """
-- What is lost with the machine's power is not worth an fsync an answer.
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    parent TEXT,
    items BLOB NOT NULL,
    body BLOB NOT NULL,
    active INTEGER NOT NULL,
    streamed INTEGER NOT NULL,
    shown INTEGER NOT NULL,
    used INTEGER NOT NULL,
    size INTEGER NOT NULL,
    lease REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_of_tenant ON responses (tenant, shown, active, used);
CREATE INDEX IF NOT EXISTS responses_of_parent ON responses (parent);
-- What each tenant's come to: summing up thousands for each new one would cost more than all else.
CREATE TABLE IF NOT EXISTS response_totals (
    tenant TEXT PRIMARY KEY,
    shown INTEGER NOT NULL,
    size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS response_added AFTER INSERT ON responses BEGIN
    INSERT INTO response_totals VALUES (NEW.tenant, NEW.shown, NEW.size)
        ON CONFLICT (tenant) DO UPDATE SET
            shown = response_totals.shown + NEW.shown, size = response_totals.size + NEW.size;
END;
CREATE TRIGGER IF NOT EXISTS response_changed AFTER UPDATE OF shown, size ON responses BEGIN
    UPDATE response_totals SET shown = shown + NEW.shown - OLD.shown, size = size + NEW.size - OLD.size
        WHERE tenant = NEW.tenant;
END;
CREATE TRIGGER IF NOT EXISTS response_gone AFTER DELETE ON responses BEGIN
    UPDATE response_totals SET shown = shown - OLD.shown, size = size - OLD.size WHERE tenant = OLD.tenant;
END;
CREATE TABLE IF NOT EXISTS response_items (
    tenant TEXT NOT NULL,
    item TEXT NOT NULL,
    response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    PRIMARY KEY (tenant, item)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_of_response ON response_items (response);
CREATE TABLE IF NOT EXISTS response_events (
    id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    first INTEGER NOT NULL,
    beyond INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (id, first)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one tenant: how many responses are in sight, and how many bytes all that is kept may come to."""

    responses: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """What went before a request. parent: its latest response; None where nothing did."""

    parent: str | None = None
    items: tuple[KeptItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A response to be kept. earlier: what it goes on with; items: what it was asked with beside that."""

    tenant: str
    earlier: Conversation
    items: Sequence[KeptItem]
    body: Response


@dataclass(frozen=True, slots=True)
class Kept:
    """A response as it is. active: more is to come. streamed: its events are kept too."""

    body: Response
    active: bool
    streamed: bool


def put(db: Connection, record: Record, bounds: Bounds, *, active: bool, streamed: bool) -> None:
    """Keep a response, and let go of what it leaves no room for."""
    parent, items = record.earlier.parent, record.items
    if parent is not None and db.execute("SELECT 1 FROM responses WHERE id = ?", (parent,)).fetchone() is None:
        # It went while this one was computed: the conversation lives on here.
        parent, items = None, [*record.earlier.items, *items]
    asked, body = to_json(items), to_json(record.body)
    db.execute(
        "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)",
        (record.body["id"], record.tenant, parent, asked, body, active, streamed, time.time_ns(),
         len(asked) + len(body), time.time()),
    )  # fmt: skip
    _name_items(db, record.tenant, record.body["id"], [*items, *record.body["output"]])
    _bound(db, record.tenant, bounds)


def _name_items(db: Connection, tenant: str, response_id: str, items: Sequence[KeptItem]) -> None:
    """Make items found by their ids."""
    named = [(tenant, item["id"], response_id) for item in items]
    db.executemany(
        "INSERT INTO response_items VALUES (?, ?, ?)"
        " ON CONFLICT (tenant, item) DO UPDATE SET response = excluded.response",
        named,
    )


def item(db: Connection, tenant: str, item_id: str) -> KeptItem | None:
    """The tenant's item of that id, of a response that is in sight."""
    row = db.execute(
        "SELECT r.items, r.body FROM response_items i JOIN responses r ON r.id = i.response"
        " WHERE i.tenant = ? AND i.item = ? AND r.shown = 1",
        (tenant, item_id),
    ).fetchone()
    if row is None:
        return None
    kept: list[KeptItem] = [*from_json(row["items"]), *from_json(row["body"])["output"]]
    return next((found for found in kept if found["id"] == item_id), None)


def look(db: Connection, tenant: str, response_id: str) -> Kept | None:
    """The tenant's response, if it is in sight. One whose router has ended is found to have failed."""
    row = db.execute(
        "SELECT body, active, streamed, lease FROM responses WHERE id = ? AND tenant = ? AND shown = 1",
        (response_id, tenant),
    ).fetchone()
    if row is None:
        return None
    db.execute("UPDATE responses SET used = ? WHERE id = ?", (time.time_ns(), response_id))
    kept = Kept(from_json(row["body"]), bool(row["active"]), bool(row["streamed"]))
    if kept.active and time.time() - row["lease"] > LEASE_S:
        error: ResponseError = {"code": "server_error", "message": "the router that ran it has ended"}
        return end(db, response_id, kept, {**kept.body, "status": "failed", "error": error})
    return kept


def end(db: Connection, response_id: str, kept: Kept, body: Response) -> Kept:
    """An active response, ended from outside of what runs it. body: as it is then."""
    if kept.streamed:
        row = db.execute("SELECT MAX(beyond) FROM response_events WHERE id = ?", (response_id,)).fetchone()
        sequence = row[0] or 0
        append(db, response_id, sequence, sequence + 1, closing(body, sequence))
    finish(db, response_id, body)
    return Kept(body, False, kept.streamed)


def append(db: Connection, response_id: str, first: int, beyond: int, data: bytes) -> bool:
    """Keep the events `first` to `beyond` (exclusive); False if the response has ended or gone meanwhile."""
    where = "WHERE id = ? AND active = 1 AND shown = 1"
    if not db.execute(f"UPDATE responses SET size = size + ? {where}", (len(data), response_id)).rowcount:
        return False
    db.execute("INSERT INTO response_events VALUES (?, ?, ?, ?)", (response_id, first, beyond, data))
    return True


def finish(db: Connection, response_id: str, body: Response) -> None:
    """Keep how an active response ended; nothing if it has ended or gone meanwhile."""
    data = to_json(body)
    row = db.execute(
        "UPDATE responses SET size = size - LENGTH(body) + ?, body = ?, active = 0 WHERE id = ? AND active = 1"
        " RETURNING tenant",
        (len(data), data, response_id),
    ).fetchone()
    if row is not None:
        _name_items(db, row["tenant"], response_id, body["output"])


def events(db: Connection, response_id: str, after: int) -> list[tuple[int, bytes]]:
    """Joined events, with the number of each first, from the piece on that holds the one behind `after`."""
    found = db.execute(
        "SELECT first, data FROM response_events WHERE id = ? AND beyond > ? ORDER BY first", (response_id, after + 1)
    )
    return [(row["first"], row["data"]) for row in found]


def renew(db: Connection, ids: list[str]) -> set[str]:
    """Lengthen the leases of responses that run; which of them still should."""
    if not ids:
        return set()
    where = f"WHERE id IN ({', '.join('?' * len(ids))}) AND active = 1 AND shown = 1"
    db.execute(f"UPDATE responses SET lease = ? {where}", (time.time(), *ids))
    return {row["id"] for row in db.execute(f"SELECT id FROM responses {where}", ids)}


def chain(db: Connection, response_id: str) -> list[tuple[list[KeptItem], list[KeptItem]]]:
    """What each response of a conversation was asked with and said, up to this one."""
    rows = db.execute(
        "WITH RECURSIVE up (id, parent, n) AS ("
        " SELECT id, parent, 0 FROM responses WHERE id = ?"
        " UNION ALL SELECT r.id, r.parent, n + 1 FROM up JOIN responses r ON r.id = up.parent)"
        " SELECT items, body FROM up JOIN responses USING (id) ORDER BY n DESC",
        (response_id,),
    )
    return [(from_json(row["items"]), from_json(row["body"])["output"]) for row in rows]


def hide(db: Connection, tenant: str, response_id: str) -> bool:
    """Out of sight, and gone unless a later response needs its items; whether it was there."""
    where = "WHERE id = ? AND tenant = ? AND shown = 1"
    found = db.execute(f"UPDATE responses SET shown = 0 {where}", (response_id, tenant)).rowcount
    _sweep(db, response_id)
    return bool(found)


def _sweep(db: Connection, response_id: str | None) -> None:
    """Drop a hidden response that no other goes on with, and those before it likewise."""
    while response_id is not None:
        row = db.execute(
            "DELETE FROM responses WHERE id = ? AND shown = 0"
            " AND NOT EXISTS (SELECT 1 FROM responses WHERE parent = ?) RETURNING parent",
            (response_id, response_id),
        ).fetchone()
        response_id = row["parent"] if row is not None else None


def _bound(db: Connection, tenant: str, bounds: Bounds) -> None:
    """Let go of what was used least recently, but for what runs."""
    oldest = "SELECT id FROM responses WHERE tenant = ? AND shown = 1 AND active = 0"
    many = _total(db, "shown", tenant) - bounds.responses
    for row in db.execute(f"{oldest} ORDER BY used LIMIT ?", (tenant, max(0, many))).fetchall():
        hide(db, tenant, row["id"])
    # From here on only what no other goes on with frees anything.
    leaf = f"{oldest} AND NOT EXISTS (SELECT 1 FROM responses child WHERE child.parent = responses.id)"
    while _total(db, "size", tenant) > bounds.bytes:
        row = db.execute(f"{leaf} ORDER BY used LIMIT 1", (tenant,)).fetchone()
        if row is None:
            return
        hide(db, tenant, row["id"])


def _total(db: Connection, what: Literal["shown", "size"], tenant: str) -> int:
    total: int = db.execute(f"SELECT {what} FROM response_totals WHERE tenant = ?", (tenant,)).fetchone()[0]
    return total
