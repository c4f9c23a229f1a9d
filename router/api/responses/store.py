"""Stored responses: limited for each tenant, shared by the routers of a host, never visible to another tenant.

A response is stored with its input items and a reference to the response that it continues. A response that is deleted,
or removed to make room, is hidden at once; its items are kept as long as a later response of the same conversation
needs them.
"""

import uuid
from pathlib import Path

from router.api.answers.items import KeptItem
from router.api.responses import rows
from router.api.responses.answers import Response
from router.api.responses.rows import Bounds, Conversation, Kept, Lapsed, Record, Run
from router.store.connection import Connection
from router.store.records import records


class ResponseStore:
    """The store of responses, in a SQLite file or in the database at a URL."""

    def __init__(self, path: Path, bounds: Bounds, url: str | None = None) -> None:
        self._database = records(url, path, rows.SCHEMA)
        self._bounds = bounds
        self._owner = uuid.uuid4().hex  # of what this router runs

    def close(self) -> None:
        """Finish the work that was given, then close."""
        self._database.close()

    async def put(self, record: Record) -> None:
        """Store a response that has ended."""
        await self._database.run(lambda db: rows.put(db, record, self._bounds, active=False, streamed=False))

    @property
    def begun(self) -> bool:
        """Whether any response was ever stored."""
        return self._database.begun

    async def begin(self, record: Record, run: Run, *, streamed: bool) -> bool:
        """Store a response that will run without its client; its lease has to be renewed. False if it is there."""

        def write(db: Connection) -> bool:
            if rows.digest(db, record.body["id"]) is not None:
                return False
            rows.put(db, record, self._bounds, active=True, streamed=streamed)
            rows.run(db, record.body["id"], self._owner, run)
            return True

        return await self._database.run(write)

    async def claim(self, most: int) -> list[Lapsed]:
        """Take over responses whose routers have died, `most` of them at most; their leases have to be renewed."""
        return await self._database.run(lambda db: rows.claim(db, self._owner, most))

    async def digest(self, response_id: str) -> bytes | None:
        """The digest of the body that asked for a response that runs or ran without its client."""
        return await self._database.run(lambda db: rows.digest(db, response_id))

    async def get(self, tenant: str, response_id: str) -> Kept | None:
        """The tenant's response with that id; None if there is none."""
        return await self._database.run(lambda db: rows.look(db, tenant, response_id))

    async def conversation(self, tenant: str, response_id: str) -> tuple[Kept, Conversation] | None:
        """A response and its whole conversation, its own answer included."""

        def read(db: Connection) -> tuple[Kept, Conversation] | None:
            kept = rows.look(db, tenant, response_id)
            if kept is None:
                return None
            items = [item for asked, said in rows.chain(db, response_id) for item in (*asked, *said)]
            return kept, Conversation(response_id, tuple(items))

        return await self._database.run(read)

    async def input_items(self, tenant: str, response_id: str) -> list[KeptItem] | None:
        """A response's input and the conversation before it; None if there is no such response."""

        def read(db: Connection) -> list[KeptItem] | None:
            if rows.look(db, tenant, response_id) is None:
                return None
            *before, (asked, _) = rows.chain(db, response_id)
            return [item for a, s in before for item in (*a, *s)] + asked

        return await self._database.run(read)

    async def item(self, tenant: str, item_id: str) -> KeptItem | None:
        """An item of a stored response or of its input."""
        return await self._database.run(lambda db: rows.item(db, tenant, item_id))

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Delete a response, which stops it if it runs; whether there was one."""
        return await self._database.run(lambda db: rows.hide(db, tenant, response_id))

    async def cancel(self, tenant: str, response_id: str) -> Kept | None:
        """End a response if it is active; the response as it is then."""

        def stop(db: Connection) -> Kept | None:
            kept = rows.look(db, tenant, response_id)
            if kept is None or not kept.active:
                return kept
            return rows.end(db, response_id, kept, {**kept.body, "status": "cancelled"})

        return await self._database.run(stop)

    async def append(self, response_id: str, first: int, beyond: int, data: bytes, taken: int) -> bool:
        """Store events of an active response; False if it has ended, was deleted, or runs elsewhere meanwhile.

        taken: the tokens whose text the events tell, with those before them.
        """

        def write(db: Connection) -> bool:
            own = rows.took(db, response_id, self._owner, taken)
            return own and rows.append(db, response_id, first, beyond, data)

        return await self._database.run(write)

    async def finish(self, body: Response, first: int, beyond: int, data: bytes) -> None:
        """Store how an active response ended, with its last events if there are any, unless it runs elsewhere."""

        def write(db: Connection) -> None:
            if body["id"] not in rows.renew(db, [body["id"]], self._owner):
                return
            if data:
                rows.append(db, body["id"], first, beyond, data)
            rows.finish(db, body["id"], body)

        await self._database.run(write)

    async def events(self, tenant: str, response_id: str, after: int) -> tuple[list[tuple[int, bytes]], bool]:
        """The events after number `after`, in pieces as `rows.events` returns them, and whether more may come."""

        def read(db: Connection) -> tuple[list[tuple[int, bytes]], bool]:
            kept = rows.look(db, tenant, response_id)
            return rows.events(db, response_id, after), kept is not None and kept.active

        return await self._database.run(read)

    async def renew(self, ids: list[str]) -> set[str]:
        """Extend the leases of running responses; returns those that should still run."""
        return await self._database.run(lambda db: rows.renew(db, ids, self._owner))
