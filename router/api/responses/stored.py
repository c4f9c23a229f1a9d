"""GET, DELETE, cancel and input_items of kept responses."""

from typing import NoReturn

from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.records import Deleted
from router.api.responses.background import Background
from router.api.responses.create import event_stream
from router.api.responses.rows import Kept
from router.api.responses.store import ResponseStore
from router.errors import ApiError, invalid
from router.http.caller import caller_of
from router.http.query import json_response, listed

_MOST_ITEMS = 100
_INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")


class Stored:
    """Handlers over one store. What belongs to another tenant is not there."""

    def __init__(self, store: ResponseStore, background: Background) -> None:
        self._store = store
        self._background = background

    async def retrieve(self, request: Request) -> Response:
        """The response as it is; with `stream`, its events behind `starting_after`, to come ones too."""
        query = _Query(request, ("stream", "starting_after", "include", "include_obfuscation"))
        stream, after = query.flag("stream"), query.number("starting_after", -1, 0, 2**31)
        query.include()
        if query.flag("include_obfuscation"):
            raise invalid("'include_obfuscation' is not supported", "include_obfuscation", "unsupported_value")
        if after >= 0 and not stream:
            raise invalid("'starting_after' needs 'stream'", "starting_after")
        kept = await self._store.get(caller_of(request.scope).tenant, _id(request))
        if kept is None:
            _missing(request)
        if not stream:
            return json_response(kept.body)
        if not kept.streamed:
            raise invalid("'stream': only a response made with 'background' and 'stream' keeps its events", "stream")
        return event_stream(self._background.follow(caller_of(request.scope).tenant, _id(request), after), [])

    async def delete(self, request: Request) -> Response:
        """Out of sight; what runs of it stops."""
        _Query(request, ())
        if not await self._store.delete(caller_of(request.scope).tenant, _id(request)):
            _missing(request)
        self._background.stop(_id(request))
        deleted: Deleted = {"id": _id(request), "object": "response", "deleted": True}
        return json_response(deleted)

    async def cancel(self, request: Request) -> Response:
        """The response, ended if it was not over."""
        _Query(request, ())
        kept: Kept | None = await self._store.cancel(caller_of(request.scope).tenant, _id(request))
        if kept is None:
            _missing(request)
        if not kept.body["background"]:
            raise invalid("only a response made with 'background' can be cancelled", None, "not_cancellable")
        self._background.stop(_id(request))
        return json_response(kept.body)

    async def input_items(self, request: Request) -> Response:
        """What it was asked with, its conversation before it too, in pages."""
        query = _Query(request, ("after", "include", "limit", "order"))
        limit = query.number("limit", 20, 1, _MOST_ITEMS)
        order = query.word("order", "desc", ("asc", "desc"))
        query.include()
        items = await self._store.input_items(caller_of(request.scope).tenant, _id(request))
        if items is None:
            _missing(request)
        if order == "desc":
            items.reverse()
        begin, after = 0, query.text("after")
        if after is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise invalid(f"'after': no item {after[:80]!r} is among them", "after")
            begin = ids.index(after) + 1
        return listed(items[begin : begin + limit + 1], limit)


class _Query:
    """A request's query, of exactly the names an endpoint knows; lists may come as `name[]`."""

    def __init__(self, request: Request, known: tuple[str, ...]) -> None:
        self._values: dict[str, list[str]] = {}
        for given, value in request.query_params.multi_items():
            name = given.removesuffix("[]")
            if name not in known:
                raise invalid(f"'{name[:80]}' is not supported", name[:80], "unsupported_parameter")
            self._values.setdefault(name, []).append(value)

    def text(self, name: str) -> str | None:
        """The latest value."""
        return self._values[name][-1] if name in self._values else None

    def word(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """One of a few."""
        value = self.text(name) or default
        if value not in known:
            raise invalid(f"'{name}' must be one of {', '.join(known)}", name)
        return value

    def flag(self, name: str) -> bool:
        """true or false."""
        return self.word(name, "false", ("true", "false")) == "true"

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within its bounds."""
        value = self.text(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and len(value) < 12 and low <= int(value) <= high):
            raise invalid(f"'{name}' must be a whole number from {low} to {high}", name)
        return int(value)

    def include(self) -> None:
        """What is shown anyway where there is any."""
        for value in self._values.get("include", ()):
            if value not in _INCLUDABLE:
                raise invalid(f"'include' {value[:80]!r} is not supported", "include", "unsupported_value")


def _id(request: Request) -> str:
    response_id: str = request.path_params["response_id"]
    return response_id


def _missing(request: Request) -> NoReturn:
    message = f"no response {_id(request)[:80]!r} is kept here"
    raise ApiError(404, message, param="response_id", code="response_not_found")
