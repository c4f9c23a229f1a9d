"""Endpoints that answer JSON from the router alone, as plain ASGI."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from router.api.answering import Answering
from router.http.body import parse, read_body
from router.http.caller import caller_of
from router.http.dialect import Dialect
from router.http.json import encode
from router.http.send import Headers, send_json
from router.relay.gateway import Gateway

Q = TypeVar("Q", bound=BaseModel)


class JsonEndpoint(Answering, Generic[Q]):
    """An ASGI application for one path.

    name: the path's label in metrics. model: validates the body. answer: makes the answer from the body, the gateway
    and the request's tenant.
    """

    def __init__(
        self,
        gateway: Gateway,
        name: str,
        dialect: Dialect,
        model: type[Q],
        answer: Callable[[Q, Gateway, str], Awaitable[Mapping[str, Any]]],
    ) -> None:
        super().__init__(gateway, name, dialect)
        self._model = model
        self._make = answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        body = await read_body(scope, receive, self._gateway.config)
        request = await self._gateway.apart(len(body), parse, body, self._model)
        answer = await self._make(request, self._gateway, caller_of(scope).tenant)
        await send_json(send, 200, await self._gateway.apart(len(body), encode, answer), headers)
        return "200"
