"""Sessions: who uses one, where it stands, and what workers are told of it."""

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
# A turn whose router died is over after so long; leases are renewed three times in that time.
_LEASE_S = 30.0


@dataclass(slots=True, eq=False)
class Turn:
    """One request's use of a session. tokens: what the session had before. over: the session is no longer its."""

    tenant: str
    id: str
    scope: str
    tokens: int
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    over: bool = False


class Sessions:
    """One router's view of the table of sessions. ttl_s: a session ends so long after its last use.

    most: sessions of a tenant.
    """

    def __init__(self, records: Records, table: WorkerTable, *, ttl_s: int, most: int) -> None:
        self._records = records
        self._table = table
        self._ttl_s = ttl_s
        self._most = most
        self._turns: set[Turn] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to renew leases."""
        self._renewing = asyncio.create_task(self._renew())

    async def close(self) -> None:
        """Renew leases no more."""
        if self._renewing is not None:
            self._renewing.cancel()

    async def settle(self) -> None:
        """Give back what requests that have ended hold, then close the store."""
        await asyncio.gather(*self._releasing, return_exceptions=True)
        await asyncio.to_thread(self._records.close)

    # Turns

    async def begin(self, tenant: str, session_id: str, scope: str) -> Turn:
        """Use a session for a request, which makes it where there is none; 409 while another one does, 403."""
        turn = Turn(tenant, session_id, scope, 0)
        made = _clock()
        take = partial(
            sessions.take, tenant=tenant, session_id=session_id, owner=turn.owner, scope=scope, most=self._most,
            now=made, until=made + _LEASE_S,
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
        """At the end, a turn that has not ended well gives the session back as it was."""
        try:
            yield
        finally:
            if turn is not None and not turn.over:
                self._leave(turn)
                task = asyncio.create_task(self._release(turn))
                self._releasing.add(task)
                task.add_done_callback(self._releasing.discard)

    async def end(self, turn: Turn, stream: SequenceStream, request_id: str) -> None:
        """A turn has ended well: the session stands behind its answer from now on."""
        prompt, known = stream.choice.prompt.token_ids, stream.token_ids
        marks = marks_at(known, (len(known) - 1, len(prompt) - 1), self.page_size, turn.scope)
        sampling = msgspec.json.encode(stream.choice.sampling)
        reached = End(known.packed, len(prompt), sampling, marks, request_id)
        self._leave(turn)
        end = partial(sessions.end, owner=turn.owner, scope=turn.scope, reached=reached, expires=now() + self._ttl_s)
        if await self._records.run(end):
            self._pin(turn.tenant, turn.id, marks)

    # What clients ask of them

    async def find(self, tenant: str, session_id: str) -> StoredSession:
        """A tenant's session, or 404."""
        found = await self._records.run(partial(sessions.find, tenant=tenant, session_id=session_id, now=now()))
        if found is None:
            raise _missing(session_id)
        return found

    async def page(self, tenant: str, span: Page) -> list[StoredSession]:
        """The tenant's, newest first."""
        found = await self._records.run(partial(sessions.page, tenant=tenant, span=span, now=now()))
        if found is None:
            raise invalid(f"'after': there is no session {span.after!r}", "after")
        return found

    async def delete(self, tenant: str, session_id: str) -> None:
        """Forget a session; 404 if there is none, 409 while a request uses it."""
        try:
            done = await self._records.run(partial(sessions.delete, tenant=tenant, session_id=session_id, now=_clock()))
        except Busy:
            raise _busy(session_id) from None
        if not done:
            raise _missing(session_id)
        self._table.tell_all(Unpin(_name(tenant, session_id)))

    async def fork(self, tenant: str, session_id: str, ids: Sequence[str]) -> list[StoredSession]:
        """New ones that begin where one stands; 404, 403, 409 if a name is taken."""
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
            raise _missing(session_id)
        for one in forks:
            self._pin(tenant, one.id, one.marks)
        return forks

    async def park(self, tenant: str, session_id: str) -> StoredSession:
        """Off the device; 404, 409, 400 where its worker can't."""
        found = await self._idle(tenant, session_id)
        for mark in found.marks:
            if reasons := [reason for reason in await self._table.park(mark) if reason is not None]:
                raise invalid(f"the session {session_id!r} can't be parked: {reasons[0]}", code="session_not_parked")
        return found

    async def last_turn(self, tenant: str, session_id: str) -> End:
        """How a session came to where it stands; 404."""
        found = await self._records.run(partial(sessions.last_turn, tenant=tenant, session_id=session_id, now=now()))
        if found is None:
            raise _missing(session_id)
        return found

    async def check_free(self, tenant: str, session_id: str) -> None:
        """409 if there is a session of that name."""
        if await self._records.run(partial(sessions.find, tenant=tenant, session_id=session_id, now=now())) is not None:
            raise _taken(session_id, "session_id")

    async def enter(self, tenant: str, session_id: str, scope: str, at: End) -> StoredSession:
        """A new session that stands where another cluster's stood; 403, 409."""
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
        """A turn that brings it back to the device, and its tokens; 404, 409. `touch` or `held` ends the turn."""
        found = await self._idle(tenant, session_id)
        turn = await self.begin(tenant, session_id, found.scope)
        read = partial(sessions.token_ids, tenant=tenant, session_id=session_id)
        return found, turn, TokenIds(await self._records.run(read))

    async def touch(self, turn: Turn, marks: tuple[Mark, ...]) -> None:
        """A turn that changed nothing has ended well."""
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

    @property
    def page_size(self) -> int:
        """Tokens a page of the workers."""
        return min((info.page_size for info in self._table.infos()), default=1)

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
    # Leases are compared between hosts.
    return time.time()


def _name(tenant: str, session_id: str) -> str:
    """What workers call a session: no two tenants' are the same."""
    return hashlib.blake2b(f"{tenant}\0{session_id}".encode(), digest_size=16).hexdigest()


def _missing(session_id: str) -> ApiError:
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
