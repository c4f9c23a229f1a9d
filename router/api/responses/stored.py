"""Endpoints of stored responses: retrieve, delete, cancel and input_items."""

from typing import Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.records import Deleted
from router.api.responses.background import Background
from router.api.responses.create import event_stream
from router.api.responses.includes import Includable
from router.api.responses.rows import Kept
from router.api.responses.store import ResponseStore
from router.errors import ApiError, invalid
from router.http.caller import caller_of
from router.http.query import NoQuery, json_response, listed, read_query


class ResponseQuery(BaseModel):
    """Query of a stored response."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stream: bool = False
    starting_after: int | None = Field(None, ge=0, lt=2**31)
    include: list[Includable] = Field(default_factory=list)  # changes nothing: all there is of these is always shown
    include_obfuscation: Literal["false"] = "false"


class ItemsQuery(BaseModel):
    """Query of a response's input items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    include: list[Includable] = Field(default_factory=list)  # changes nothing: all there is of these is always shown


class StoredResponses:
    """Handlers over one store. A response of another tenant is a 404."""

    def __init__(self, store: ResponseStore, background: Background) -> None:
        self._store = store
        self._background = background

    async def retrieve(self, request: Request) -> Response:
        """The response in its current state.

        With `stream`, its events after `starting_after`, including future ones.
        """
        query = read_query(request, ResponseQuery)
        if query.starting_after is not None and not query.stream:
            raise invalid("'starting_after' needs 'stream'", "starting_after")
        kept = await self._store.get(caller_of(request.scope).tenant, _id(request))
        if kept is None:
            _missing(request)
        if not query.stream:
            return json_response(kept.body)
        if not kept.streamed:
            raise invalid("'stream': only a response made with 'background' and 'stream' keeps its events", "stream")
        after = -1 if query.starting_after is None else query.starting_after
        return event_stream(self._background.follow(caller_of(request.scope).tenant, _id(request), after), [])

    async def delete(self, request: Request) -> Response:
        """Delete a response, which stops it if it runs."""
        read_query(request, NoQuery)
        if not await self._store.delete(caller_of(request.scope).tenant, _id(request)):
            _missing(request)
        self._background.stop(_id(request))
        deleted: Deleted = {"id": _id(request), "object": "response", "deleted": True}
        return json_response(deleted)

    async def cancel(self, request: Request) -> Response:
        """End a response if it runs; the response as it is then."""
        read_query(request, NoQuery)
        kept: Kept | None = await self._store.cancel(caller_of(request.scope).tenant, _id(request))
        if kept is None:
            _missing(request)
        if not kept.body["background"]:
            raise invalid("only a response made with 'background' can be cancelled", None, "not_cancellable")
        self._background.stop(_id(request))
        return json_response(kept.body)

    async def input_items(self, request: Request) -> Response:
        """The response's input and the conversation before it, in pages."""
        query = read_query(request, ItemsQuery)
        items = await self._store.input_items(caller_of(request.scope).tenant, _id(request))
        if items is None:
            _missing(request)
        if query.order == "desc":
            items.reverse()
        begin, after = 0, query.after
        if after is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise invalid(f"'after': no item {after[:80]!r} is among them", "after")
            begin = ids.index(after) + 1
        return listed(items[begin : begin + query.limit + 1], query.limit)


def _id(request: Request) -> str:
    response_id: str = request.path_params["response_id"]
    return response_id


def _missing(request: Request) -> NoReturn:
    message = f"no response {_id(request)[:80]!r} is kept here"
    raise ApiError(404, message, param="response_id", code="response_not_found")
