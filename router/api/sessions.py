"""/v1/sessions: lists sessions, moves their snapshots between tiers of memory, and forks them."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.records import Deleted
from router.api.answers.sessions import SessionList, SessionRecord
from router.api.schema import SessionId, Strict
from router.api.session_turn import named
from router.errors import ApiError, invalid
from router.http.body import parse, read_body
from router.http.caller import caller_of
from router.http.query import NoQuery, json_response, listed, read_query
from router.relay.gateway import Gateway
from router.relay.sessions import Sessions
from router.store.files import Page
from router.store.sessions import StoredSession


class SessionsQuery(BaseModel):
    """Query of a list of sessions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    limit: int = Field(20, ge=1, le=100)


class ForkRequest(Strict):
    """Body of /v1/sessions/{id}/fork."""

    ids: Annotated[list[SessionId], Field(min_length=1, max_length=256)] = Field(
        description="names of the new sessions"
    )


class SessionsApi:
    """Handlers for sessions. A session of another tenant is a 404."""

    def __init__(self, gateway: Gateway, sessions: Sessions) -> None:
        self._gateway = gateway
        self._sessions = sessions

    async def page(self, request: Request) -> Response:
        """The tenant's sessions, newest first."""
        query = read_query(request, SessionsQuery)
        found = await self._sessions.page(caller_of(request.scope).tenant, Page(query.after, query.limit))
        return listed([self._shown(one) for one in found], query.limit)

    async def retrieve(self, request: Request) -> Response:
        """One session."""
        read_query(request, NoQuery)
        return json_response(self._shown(await self._sessions.find(*named(request))))

    async def delete(self, request: Request) -> Response:
        """Delete a session."""
        read_query(request, NoQuery)
        tenant, session_id = named(request)
        await self._sessions.delete(tenant, session_id)
        deleted: Deleted = {"id": session_id, "object": "session", "deleted": True}
        return json_response(deleted)

    async def park(self, request: Request) -> Response:
        """Move a session's snapshot from the device to host memory or disk."""
        read_query(request, NoQuery)
        tenant, session_id = named(request)
        await self._sessions.park(tenant, session_id)
        return json_response(self._shown(await self._sessions.find(tenant, session_id)))

    async def resume(self, request: Request) -> Response:
        """Bring a session's snapshot to a device."""
        read_query(request, NoQuery)
        tenant, session_id = named(request)
        config = self._gateway.config
        with self._gateway.admitted(1):
            found, turn, token_ids = await self._sessions.resume(tenant, session_id)
            with self._sessions.held(turn):
                try:
                    async with asyncio.timeout(config.first_token_timeout_s):
                        reason = await self._gateway.warm(token_ids, found.scope, found.marks)
                except TimeoutError:
                    message = f"the session was not on a device within {config.first_token_timeout_s:g} s"
                    raise ApiError(504, message, code="timeout") from None
                if reason is not None:
                    raise invalid(f"the session {session_id!r} can't be resumed: {reason}", code="session_not_resumed")
                await self._sessions.touch(turn, found.marks)
        return json_response(self._shown(await self._sessions.find(tenant, session_id)))

    async def fork(self, request: Request) -> Response:
        """Create sessions that continue from the end of this one."""
        read_query(request, NoQuery)
        wanted = parse(await read_body(request.scope, request.receive, self._gateway.config), ForkRequest)
        if len(set(wanted.ids)) < len(wanted.ids):
            raise invalid("'ids' names a session twice", "ids")
        forks = await self._sessions.fork(*named(request), wanted.ids)
        answer: SessionList = {"object": "list", "data": self._all_shown(forks)}
        return json_response(answer)

    def record(self, session: StoredSession) -> Response:
        """A session as an answer."""
        return json_response(self._shown(session))

    def _all_shown(self, found: Sequence[StoredSession]) -> list[SessionRecord]:
        return [self._shown(one) for one in found]

    def _shown(self, session: StoredSession) -> SessionRecord:
        kept = self._gateway.table.kept(session.marks)
        return {
            "id": session.id,
            "object": "session",
            "tokens": session.tokens,
            "kept_tokens": kept.position if kept is not None else 0,
            "tier": kept.tier if kept is not None else None,
            "bytes": kept.bytes if kept is not None else 0,
            "created_at": session.created_at,
            "expires_at": session.expires_at,
            "parent": session.parent,
            "last_request": session.last_request,
        }
