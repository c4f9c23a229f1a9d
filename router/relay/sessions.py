"""Manages sessions: which request uses one, where it ends, and which snapshots workers pin for it."""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec

from router.errors import ApiError, invalid
from router.relay.keyed import Keyed
from router.relay.link import WorkerLink
from router.relay.prefixes import marks_at
from router.relay.stream import SequenceStream
from router.relay.table import WorkerTable
from router.store import sessions
from router.store.connection import Records
from router.store.files import Page
from router.store.sessions import Busy, End, Full, StoredSession, Taken
from router.store.store import now
from wire.protocol import Mark, Pin, Unpin
from wire.tokens import TokenIds

_log = logging.getLogger(__name__)
# Seconds after which the turn of a dead router ends; leases are renewed three times within it.
_LEASE_S = 30.0
# Sessions that are read at once to tell a worker which of its files they need, and seconds until a read that failed is
# tried again.
_READ = 1000
_AGAIN_S = 1.0


@dataclass(slots=True, eq=False)
class Turn:
    """One request's use of a session. tokens: of the session before the turn.

    over: the turn no longer holds the session.
    """

    tenant: str
    id: str
    scope: str
    tokens: int
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    over: bool = False


class Sessions:
    """One router's view of the table of sessions.

    ttl_s: how long a session is kept after its last use. most: sessions of a tenant.
    """

    def __init__(self, records: Records, table: WorkerTable, *, ttl_s: int, most: int) -> None:
        self._records = records
        self._table = table
        self._ttl_s = ttl_s
        self._most = most
        self._turns: set[Turn] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()
        self._anew: set[WorkerLink] = set()  # to workers that have found files of earlier ones
        self._restoring: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew leases, and to pin sessions at workers that start anew."""
        self._renewing = asyncio.create_task(self._renew())
        self._table.on_found = self._found

    async def close(self) -> None:
        """Stop renewing leases and pinning."""
        for task in (self._renewing, self._restoring):
            if task is not None:
                task.cancel()

    async def settle(self) -> None:
        """Release the sessions that ended requests still hold, then close the store."""
        await asyncio.gather(*self._releasing, return_exceptions=True)
        await asyncio.to_thread(self._records.close)

    # Turns

    async def begin(
        self, tenant: str, session_id: str, scope: str, keyed: Keyed | None = None, *, takes_over: bool = True
    ) -> Turn:
        """Begin a request's turn in a session, which is created if needed.

        409 while another request uses it; 403 for another scope. keyed: the request's key. takes_over: it takes the
        session from an earlier request with this key, whose router may have died.
        """
        turn = Turn(tenant, session_id, scope, 0)
        name = f"{keyed.name.hex()}-" if keyed is not None else ""
        turn.owner = name + turn.owner
        earlier = name if name and takes_over else None
        made = _clock()
        take = partial(
            sessions.take, tenant=tenant, session_id=session_id, owner=turn.owner, scope=scope, most=self._most,
            now=made, until=made + _LEASE_S, earlier=earlier,
        )  # fmt: skip
        try:
            found = await self._records.run(take)
        except Busy:
            raise _busy(session_id) from None
        except Full:
            raise self._full() from None
        turn.tokens = found.tokens
        self._turns.add(turn)
        return turn

    @contextmanager
    def held(self, turn: Turn | None) -> Iterator[None]:
        """Release the turn when the block ends. Unless the turn ended well, the session is as before."""
        try:
            yield
        finally:
            if turn is not None and not turn.over:
                self._leave(turn)
                task = asyncio.create_task(self._release(turn))
                self._releasing.add(task)
                task.add_done_callback(self._releasing.discard)

    async def end(self, turn: Turn, stream: SequenceStream, request_id: str) -> None:
        """A turn ended well: the session now ends with its answer."""
        prompt, known = stream.choice.prompt.token_ids, stream.token_ids
        marks = marks_at(known, (len(known) - 1, len(prompt) - 1), self.page_size, turn.scope)
        sampling = msgspec.json.encode(stream.choice.sampling)
        reached = End(known.packed, len(prompt), sampling, marks, request_id)
        self._leave(turn)
        end = partial(sessions.end, owner=turn.owner, scope=turn.scope, reached=reached, expires=now() + self._ttl_s)
        if await self._records.run(end):
            self._pin(turn.tenant, turn.id, marks)

    # Requests about sessions

    async def find(self, tenant: str, session_id: str) -> StoredSession:
        """Return a tenant's session; 404 if there is none."""
        found = await self._records.run(partial(sessions.find, tenant=tenant, session_id=session_id, now=now()))
        if found is None:
            raise missing(session_id)
        return found

    async def page(self, tenant: str, span: Page) -> list[StoredSession]:
        """Return a page of the tenant's sessions, newest first."""
        found = await self._records.run(partial(sessions.page, tenant=tenant, span=span, now=now()))
        if found is None:
            raise invalid(f"'after': there is no session {span.after!r}", "after")
        return found

    async def delete(self, tenant: str, session_id: str) -> None:
        """Delete a session; 404 if there is none, 409 while a request uses it."""
        try:
            done = await self._records.run(partial(sessions.delete, tenant=tenant, session_id=session_id, now=_clock()))
        except Busy:
            raise _busy(session_id) from None
        if not done:
            raise missing(session_id)
        self._table.tell_all(Unpin(_name(tenant, session_id)))

    async def fork(self, tenant: str, session_id: str, ids: Sequence[str]) -> list[StoredSession]:
        """Create sessions that continue from the end of this one; 404, 403, 409 if a name is taken."""
        made = now()
        work = partial(
            sessions.fork, tenant=tenant, session_id=session_id, ids=ids, most=self._most, now=made,
            expires=made + self._ttl_s,
        )  # fmt: skip
        try:
            forks = await self._records.run(work)
        except Taken as error:
            raise _taken(str(error), "ids") from None
        except Full:
            raise self._full() from None
        if forks is None:
            raise missing(session_id)
        for one in forks:
            self._pin(tenant, one.id, one.marks)
        return forks

    async def park(self, tenant: str, session_id: str) -> StoredSession:
        """Move the session's snapshot off the device; 404, 409, or 400 if its worker can't."""
        found = await self._idle(tenant, session_id)
        for mark in found.marks:
            if reasons := [reason for reason in await self._table.park(mark) if reason is not None]:
                raise invalid(f"the session {session_id!r} can't be parked: {reasons[0]}", code="session_not_parked")
        return found

    async def last_turn(self, tenant: str, session_id: str) -> End:
        """Return the last turn of a session; 404."""
        found = await self._records.run(partial(sessions.last_turn, tenant=tenant, session_id=session_id, now=now()))
        if found is None:
            raise missing(session_id)
        return found

    async def check_free(self, tenant: str, session_id: str) -> None:
        """409 if there is a session of that name."""
        if await self._records.run(partial(sessions.find, tenant=tenant, session_id=session_id, now=now())) is not None:
            raise _taken(session_id, "session_id")

    async def enter(self, tenant: str, session_id: str, scope: str, at: End) -> StoredSession:
        """Create a session that ends where another cluster's ended; 403 or 409 if that is not possible."""
        made = now()
        work = partial(
            sessions.enter, tenant=tenant, session_id=session_id, scope=scope, at=at, most=self._most, now=made,
            expires=made + self._ttl_s,
        )  # fmt: skip
        try:
            entered = await self._records.run(work)
        except Taken:
            raise _taken(session_id, "session_id") from None
        except Full:
            raise self._full() from None
        self._pin(tenant, session_id, at.marks)
        return entered

    async def resume(self, tenant: str, session_id: str) -> tuple[StoredSession, Turn, TokenIds]:
        """Begin a turn that brings the session to a device; returns it with the tokens. 404, 409.

        `touch` or `held` ends it.
        """
        found = await self._idle(tenant, session_id)
        turn = await self.begin(tenant, session_id, found.scope)
        read = partial(sessions.token_ids, tenant=tenant, session_id=session_id)
        return found, turn, TokenIds(await self._records.run(read))

    async def touch(self, turn: Turn, marks: tuple[Mark, ...]) -> None:
        """End a turn that changed nothing."""
        self._leave(turn)
        await self._records.run(partial(sessions.release, owner=turn.owner, expires=now() + self._ttl_s))
        self._pin(turn.tenant, turn.id, marks)

    # Inside

    async def _idle(self, tenant: str, session_id: str) -> StoredSession:
        found = await self.find(tenant, session_id)
        if found.owner is not None and found.owned_until > _clock():
            raise _busy(session_id)
        return found

    def _pin(self, tenant: str, session_id: str, marks: tuple[Mark, ...]) -> None:
        self._table.tell_all(Pin(_name(tenant, session_id), marks, float(self._ttl_s)))

    def _found(self, link: WorkerLink) -> None:
        """A worker has found files: those that sessions end at are pinned again, as the records say, and no others."""
        self._anew.add(link)
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.create_task(self._restore())

    async def _restore(self) -> None:
        while self._anew:
            links, self._anew = self._anew, set()
            try:
                await self._pin_all(links)
            except Exception:
                _log.exception("sessions are not pinned yet at workers that have started")
                self._anew |= links
                await asyncio.sleep(_AGAIN_S)

    async def _pin_all(self, links: set[WorkerLink]) -> None:
        last = 0
        while found := await self._records.run(partial(sessions.standings, after=last, limit=_READ, now=now())):
            last = found[-1].serial
            for one in found:
                for link in links & self._table.keeping(one.marks):
                    link.tell(Pin(_name(one.tenant, one.id), one.marks, one.expires_at - _clock(), again=True))

    @property
    def page_size(self) -> int:
        """The workers' page size in tokens."""
        limits = self._table.limits()
        return limits.page_size if limits is not None else 1

    def _leave(self, turn: Turn) -> None:
        turn.over = True
        self._turns.discard(turn)

    async def _release(self, turn: Turn) -> None:
        try:
            await self._records.run(partial(sessions.release, owner=turn.owner))
        except Exception:
            _log.exception("the session %s is in use until its lease ends", turn.id)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            if self._turns:
                owners = [turn.owner for turn in self._turns]
                try:
                    await self._records.run(partial(sessions.renew, owners=owners, until=_clock() + _LEASE_S))
                except Exception:
                    _log.exception("leases of %d sessions were not renewed", len(owners))

    def _full(self) -> ApiError:
        message = f"you have {self._most} sessions, as many as there may be: delete some, or let some expire"
        return ApiError(403, message, code="session_quota_exceeded")


def _clock() -> float:
    # Leases are in Unix time, because several hosts compare them.
    return time.time()


def _name(tenant: str, session_id: str) -> str:
    """The name of a session for workers, in which tenants' sessions have different names."""
    return hashlib.blake2b(f"{tenant}\0{session_id}".encode(), digest_size=16).hexdigest()


def missing(session_id: str) -> ApiError:
    """The 404 of a session that is not there."""
    return ApiError(404, f"there is no session {session_id[:128]!r}", code="session_not_found")


def _taken(session_id: str, param: str) -> ApiError:
    return ApiError(409, f"there is a session {session_id!r} already", param=param, code="session_exists")


def _busy(session_id: str) -> ApiError:
    return ApiError(
        409,
        f"a request uses the session {session_id!r}: wait for its end, or fork the session and use the fork",
        param="session_id",
        code="session_busy",
    )
