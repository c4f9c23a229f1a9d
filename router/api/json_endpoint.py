"""Endpoints that answer from the router alone, as plain ASGI."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from router.errors import ApiError
from router.http.body import ClientGone, parse, read_body
from router.http.caller import caller_of
from router.http.dialect import Dialect
from router.http.json import encode
from router.http.send import Headers, send_error, send_json
from router.relay.gateway import Gateway

_log = logging.getLogger(__name__)
Q = TypeVar("Q", bound=BaseModel)


class Question(Protocol[Q]):
    """What one of them adds. name: in the metrics."""

    name: str
    dialect: Dialect
    model: type[Q]

    async def answer(self, request: Q, gateway: Gateway) -> Mapping[str, Any]:
        """Its JSON."""


class JsonEndpoint:
    """An ASGI application for one path."""

    def __init__(self, gateway: Gateway, question: Question[Any]) -> None:
        self._gateway = gateway
        self._question = question

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived, status = time.monotonic(), "disconnected"
        headers: Headers = []
        gateway, question = self._gateway, self._question
        try:
            headers.append((b"x-request-id", caller_of(scope).request_id.encode()))
            request = parse(await read_body(scope, receive, gateway.config), question.model)
            content = await question.answer(request, gateway)
            body = await asyncio.to_thread(encode, content)
            if question.dialect.id_header != headers[0][0]:
                headers.append((question.dialect.id_header, headers[0][1]))
            await send_json(send, 200, body, headers)
            status = "200"
        except ClientGone:
            pass
        except ApiError as error:
            status = str(error.status)
            await send_error(send, error, headers, question.dialect)
        except Exception:
            status = "500"
            _log.exception("request %s failed", caller_of(scope).request_id)
            internal = ApiError(500, "internal error", code="internal_error")
            await send_error(send, internal, headers, question.dialect)
        finally:
            gateway.metrics.answered(question.name, status, time.monotonic() - arrived)
