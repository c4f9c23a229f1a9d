"""The outermost ASGI layer, which gives each request and its answer an id, and logs it."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.errors import ApiError
from router.http.caller import Caller, caller_of, introduce
from router.http.dialect import dialect_of
from router.http.send import send_error
from router.relay.choice import ServedBy

if TYPE_CHECKING:
    from router.tracing import Tracing

_log = logging.getLogger(__name__)
_ID = re.compile(r"[!-+\--~]{1,128}")  # printable ASCII without the comma, by which proxies join two values
MAX_HEAD_BYTES = 64 * 1024
_SERVED_BY = tuple(field.name for field in fields(ServedBy))


class Entrance:
    """Takes the client's `x-request-id` or makes one, puts it into the answer's headers, and logs the request."""

    def __init__(self, app: ASGIApp, model: str, tracing: "Tracing | None") -> None:
        self._app = app
        self._model = model
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 431 if its head is too long."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = time.monotonic()
        introduce(scope, Caller(secrets.token_hex(16)))
        if self._tracing is not None:
            came = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"), None)
            caller_of(scope).span = self._tracing.begin(scope["method"], scope["path"][:200], came)
        outcome = _Outcome(scope, send)
        try:
            try:
                _look_at_head(scope)
            except ApiError as error:
                headers = [(b"x-request-id", caller_of(scope).request_id.encode())]
                await send_error(outcome.send, error, headers, dialect_of(scope["path"]))
            else:
                await self._app(scope, receive, outcome.send)
        finally:
            outcome.tell(self._model, time.monotonic() - arrived)


class _Outcome:
    """The outcome of one request, for its log line."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._status = 0

    def send(self, message: Message) -> Awaitable[None]:
        """ASGI's `send`. It adds no coroutine of its own, because it is called for each chunk of a stream."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            names = {b"x-request-id", dialect_of(self._scope["path"]).id_header}
            missing = names - {name for name, _ in message["headers"]}
            caller = caller_of(self._scope)
            value = caller.request_id.encode()
            message["headers"] = [*message["headers"], *((name, value) for name in sorted(missing))]
            if caller.span is not None:
                message["headers"].append((b"traceparent", caller.span.traceparent.encode()))
        return self._send(message)

    def tell(self, model: str, seconds: float) -> None:
        """Log one line, as a warning if the server failed, and end the request's span."""
        caller = caller_of(self._scope)
        if caller.span is not None:
            caller.span.computed(model, caller.choices)
            caller.span.end(self._status, {"ling.request_id": caller.request_id, "ling.tenant": caller.tenant})
        level = logging.WARNING if self._status >= 500 else logging.INFO
        if _log.isEnabledFor(level):
            line = "%s %r"
            asked = (self._scope["method"], self._scope["path"][:200])
            _log.log(level, line, *asked, extra={"fields": self._fields(caller, seconds)})

    def _fields(self, caller: Caller, seconds: float) -> dict[str, Any]:
        """The fields of the log line besides the path: ids, figures, and the body only if prompts are to be logged."""
        said: dict[str, Any] = {"request_id": caller.request_id, "status": self._status, "seconds": round(seconds, 4)}
        if caller.tenant:
            said["tenant"] = caller.tenant
        if caller.choices:
            prompts = {id(choice.prompt): choice.prompt for choice in caller.choices}.values()
            said["prompt_tokens"] = sum(len(prompt.token_ids) for prompt in prompts)
            said["output_tokens"] = sum(choice.generated for choice in caller.choices)
            said["finish"] = [choice.finish for choice in caller.choices]
            served = [choice.served_by for choice in caller.choices if choice.served_by is not None]
            said["served_by"] = [{name: getattr(by, name) for name in _SERVED_BY} for by in served]
        if caller.asked:
            said["asked"] = caller.asked
        return said


def _look_at_head(scope: Scope) -> None:
    size, given = len(scope.get("raw_path") or b"") + len(scope["query_string"]), None
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        if name == b"x-request-id":
            given = value.decode("latin-1") if given is None else ""
    if size > MAX_HEAD_BYTES:
        raise ApiError(431, f"the head of the request exceeds {MAX_HEAD_BYTES} bytes", code="head_too_large")
    # A client's id is replaced if it has odd characters or a proxy joined it from two.
    if given is not None and _ID.fullmatch(given):
        caller_of(scope).request_id = given
