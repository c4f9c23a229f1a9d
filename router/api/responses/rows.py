"""The tables of stored responses, and functions that each run within one transaction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic_core import from_json, to_json

from router.api.answers.items import KeptItem
from router.api.responses.answers import Response, ResponseError
from router.api.responses.events import closing
from router.store.connection import Connection

# Seconds after which a router that renews no leases counts as dead: another one takes its responses over.
LEASE_S = 5.0
# If none has done so for this time, or so many have and ended too, the response has failed.
_ABANDONED_S, _MOST_RUNS = 60.0, 3
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
-- What another router needs to go on with a response: the request's body, and the tokens that its stored events tell.
CREATE TABLE IF NOT EXISTS response_runs (
    id TEXT PRIMARY KEY REFERENCES responses (id) ON DELETE CASCADE,
    owner TEXT NOT NULL,
    asked BLOB NOT NULL,
    digest BLOB NOT NULL,
    taken INTEGER NOT NULL,
    runs INTEGER NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one tenant: visible responses, and bytes of everything that is stored."""

    responses: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """The conversation before a request. parent: its latest response; None if there is none."""

    parent: str | None = None
    items: tuple[KeptItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A response to be stored. earlier: the conversation that it continues. items: its own input."""

    tenant: str
    earlier: Conversation
    items: Sequence[KeptItem]
    body: Response


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored response. active: it still runs. streamed: its events are stored too."""

    body: Response
    active: bool
    streamed: bool


@dataclass(frozen=True, slots=True)
class Run:
    """A response that is to run without its client. asked: the request's body. digest: of that."""

    asked: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Lapsed:
    """A response whose router has died. told: its stored events. taken: the tokens whose text those tell."""

    record: Record
    asked: bytes
    streamed: bool
    told: int
    taken: int


def put(db: Connection, record: Record, bounds: Bounds, *, active: bool, streamed: bool) -> None:
    """Store a response, and remove others to make room for it."""
    parent, items = record.earlier.parent, record.items
    if parent is not None and db.execute("SELECT 1 FROM responses WHERE id = ?", (parent,)).fetchone() is None:
        # The earlier response was removed while this one was computed: this one takes over the conversation's items.
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
    """Store the ids of items, so that they can be found."""
    named = [(tenant, item["id"], response_id) for item in items]
    db.executemany(
        "INSERT INTO response_items VALUES (?, ?, ?)"
        " ON CONFLICT (tenant, item) DO UPDATE SET response = excluded.response",
        named,
    )


def item(db: Connection, tenant: str, item_id: str) -> KeptItem | None:
    """The tenant's item with that id, if its response is visible."""
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
    """The tenant's response, if it is visible. If its router has died and none goes on with it, it fails here."""
    row = db.execute(
        "SELECT body, active, streamed, lease, runs FROM responses LEFT JOIN response_runs USING (id)"
        " WHERE id = ? AND tenant = ? AND shown = 1",
        (response_id, tenant),
    ).fetchone()
    if row is None:
        return None
    db.execute("UPDATE responses SET used = ? WHERE id = ?", (time.time_ns(), response_id))
    kept = Kept(from_json(row["body"]), bool(row["active"]), bool(row["streamed"]))
    late_s = time.time() - row["lease"]
    if kept.active and late_s > (_ABANDONED_S if (row["runs"] or _MOST_RUNS) < _MOST_RUNS else LEASE_S):
        error: ResponseError = {"code": "server_error", "message": "the router that ran it has ended"}
        return end(db, response_id, kept, {**kept.body, "status": "failed", "error": error})
    return kept


def end(db: Connection, response_id: str, kept: Kept, body: Response) -> Kept:
    """End an active response from outside of its run. body: the final response."""
    if kept.streamed:
        row = db.execute("SELECT MAX(beyond) FROM response_events WHERE id = ?", (response_id,)).fetchone()
        sequence = row[0] or 0
        append(db, response_id, sequence, sequence + 1, closing(body, sequence))
    finish(db, response_id, body)
    return Kept(body, False, kept.streamed)


def run(db: Connection, response_id: str, owner: str, run: Run) -> None:
    """Store what an active response's run needs. owner: the router that runs it."""
    db.execute("INSERT INTO response_runs VALUES (?, ?, ?, ?, 0, 1)", (response_id, owner, run.asked, run.digest))


def took(db: Connection, response_id: str, owner: str, taken: int) -> bool:
    """Store how many tokens the stored events tell; False if another router runs the response."""
    where = "WHERE id = ? AND owner = ?"
    return bool(db.execute(f"UPDATE response_runs SET taken = ? {where}", (taken, response_id, owner)).rowcount)


def digest(db: Connection, response_id: str) -> bytes | None:
    """The digest of the body that asked for a response that runs or ran without its client."""
    row = db.execute("SELECT digest FROM response_runs WHERE id = ?", (response_id,)).fetchone()
    return bytes(row["digest"]) if row is not None else None


def claim(db: Connection, owner: str, most: int) -> list[Lapsed]:
    """Take over responses whose routers have died, `most` of them at most."""
    found = db.execute(
        "SELECT id, tenant, parent, items, body, streamed, asked, taken FROM responses JOIN response_runs USING (id)"
        " WHERE active = 1 AND shown = 1 AND lease < ? AND runs < ? ORDER BY lease LIMIT ?",
        (time.time() - LEASE_S, _MOST_RUNS, most),
    ).fetchall()
    lapsed = []
    for row in found:
        db.execute("UPDATE responses SET lease = ? WHERE id = ?", (time.time(), row["id"]))
        db.execute("UPDATE response_runs SET owner = ?, runs = runs + 1 WHERE id = ?", (owner, row["id"]))
        told = db.execute("SELECT MAX(beyond) FROM response_events WHERE id = ?", (row["id"],)).fetchone()[0] or 0
        before = chain(db, row["parent"]) if row["parent"] is not None else []
        earlier = Conversation(row["parent"], tuple(item for asked, said in before for item in (*asked, *said)))
        record = Record(row["tenant"], earlier, from_json(row["items"]), from_json(row["body"]))
        lapsed.append(Lapsed(record, bytes(row["asked"]), bool(row["streamed"]), told, row["taken"]))
    return lapsed


def append(db: Connection, response_id: str, first: int, beyond: int, data: bytes) -> bool:
    """Store the events `first` to `beyond` (exclusive); False if the response has ended or was deleted meanwhile."""
    where = "WHERE id = ? AND active = 1 AND shown = 1"
    if not db.execute(f"UPDATE responses SET size = size + ? {where}", (len(data), response_id)).rowcount:
        return False
    db.execute("INSERT INTO response_events VALUES (?, ?, ?, ?)", (response_id, first, beyond, data))
    return True


def finish(db: Connection, response_id: str, body: Response) -> None:
    """Store how an active response ended; do nothing if it has ended or was deleted meanwhile."""
    data = to_json(body)
    row = db.execute(
        "UPDATE responses SET size = size - LENGTH(body) + ?, body = ?, active = 0 WHERE id = ? AND active = 1"
        " RETURNING tenant",
        (len(data), data, response_id),
    ).fetchone()
    if row is not None:
        _name_items(db, row["tenant"], response_id, body["output"])
        db.execute("UPDATE response_runs SET asked = ? WHERE id = ?", (b"", response_id))


def events(db: Connection, response_id: str, after: int) -> list[tuple[int, bytes]]:
    """Pieces of joined events, each with its first event's number, from the piece on that holds event `after` + 1."""
    found = db.execute(
        "SELECT first, data FROM response_events WHERE id = ? AND beyond > ? ORDER BY first", (response_id, after + 1)
    )
    return [(row["first"], row["data"]) for row in found]


def renew(db: Connection, ids: list[str], owner: str) -> set[str]:
    """Extend the leases of running responses; returns those that should still run here."""
    if not ids:
        return set()
    own = "id IN (SELECT id FROM response_runs WHERE owner = ?)"
    where = f"WHERE id IN ({', '.join('?' * len(ids))}) AND active = 1 AND shown = 1 AND {own}"
    db.execute(f"UPDATE responses SET lease = ? {where}", (time.time(), *ids, owner))
    return {row["id"] for row in db.execute(f"SELECT id FROM responses {where}", (*ids, owner))}


def chain(db: Connection, response_id: str) -> list[tuple[list[KeptItem], list[KeptItem]]]:
    """The input and output of each response of a conversation, up to this one."""
    rows = db.execute(
        "WITH RECURSIVE up (id, parent, n) AS ("
        " SELECT id, parent, 0 FROM responses WHERE id = ?"
        " UNION ALL SELECT r.id, r.parent, n + 1 FROM up JOIN responses r ON r.id = up.parent)"
        " SELECT items, body FROM up JOIN responses USING (id) ORDER BY n DESC",
        (response_id,),
    )
    return [(from_json(row["items"]), from_json(row["body"])["output"]) for row in rows]


def hide(db: Connection, tenant: str, response_id: str) -> bool:
    """Hide a response, and delete it unless a later response needs its items; whether there was one."""
    where = "WHERE id = ? AND tenant = ? AND shown = 1"
    found = db.execute(f"UPDATE responses SET shown = 0 {where}", (response_id, tenant)).rowcount
    _sweep(db, response_id)
    return bool(found)


def _sweep(db: Connection, response_id: str | None) -> None:
    """Delete a hidden response that no other one continues, and then the hidden ones before it."""
    while response_id is not None:
        row = db.execute(
            "DELETE FROM responses WHERE id = ? AND shown = 0"
            " AND NOT EXISTS (SELECT 1 FROM responses WHERE parent = ?) RETURNING parent",
            (response_id, response_id),
        ).fetchone()
        response_id = row["parent"] if row is not None else None


def _bound(db: Connection, tenant: str, bounds: Bounds) -> None:
    """Remove the least recently used responses beyond the limits, except those that run."""
    oldest = "SELECT id FROM responses WHERE tenant = ? AND shown = 1 AND active = 0"
    many = _total(db, "shown", tenant) - bounds.responses
    for row in db.execute(f"{oldest} ORDER BY used LIMIT ?", (tenant, max(0, many))).fetchall():
        hide(db, tenant, row["id"])
    # From here on, only removing a response that no other one continues frees space.
    leaf = f"{oldest} AND NOT EXISTS (SELECT 1 FROM responses child WHERE child.parent = responses.id)"
    while _total(db, "size", tenant) > bounds.bytes:
        row = db.execute(f"{leaf} ORDER BY used LIMIT 1", (tenant,)).fetchone()
        if row is None:
            return
        hide(db, tenant, row["id"])


def _total(db: Connection, what: Literal["shown", "size"], tenant: str) -> int:
    total: int = db.execute(f"SELECT {what} FROM response_totals WHERE tenant = ?", (tenant,)).fetchone()[0]
    return total
