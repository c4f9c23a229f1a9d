"""An ASGI layer that lets only requests with a key, and within its limits, reach the APIs."""

import time
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.access.keys import Holder, Keys
from router.access.limits import Account
from router.errors import ApiError, too_many
from router.http.caller import caller_of
from router.http.dialect import Dialect, dialect_of
from router.http.send import send_error
from router.metrics import Metrics


class Guard:
    """Checks the key in `Authorization: Bearer KEY` or `x-api-key: KEY`. Probes, status and metrics need none."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics, asks_for_key: Callable[[str], bool]) -> None:
        """asks_for_key: whether a path needs one."""
        self._app = app
        self._asks = asks_for_key
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 429."""
        if scope["type"] != "http" or not self._asks(scope["path"]):
            await self._app(scope, receive, send)
            return
        dialect = dialect_of(scope["path"])
        try:
            holder = self._holder(scope)
        except ApiError as error:
            self._metrics.refuse(error.status)
            await send_error(send, error, [(b"x-request-id", caller_of(scope).request_id.encode())], dialect)
            return
        caller = caller_of(scope)
        caller.tenant, caller.account = holder.tenant, holder.account
        self._metrics.asked(holder.tenant)
        if holder.account is None:
            await self._app(scope, receive, send)
        else:
            await self._within(holder.account, scope, receive, _telling(holder.account, dialect, send))

    def _holder(self, scope: Scope) -> Holder:
        key = _key(scope)
        holder = self._keys.holder(key) if key else None
        if holder is None:
            message = (
                "the API key is unknown" if key else "an API key is needed: send the header Authorization: Bearer KEY"
            )
            raise ApiError(401, message, code="invalid_api_key")
        return holder

    async def _within(self, account: Account, scope: Scope, receive: Receive, send: Send) -> None:
        denied = account.enter(time.monotonic())
        if denied is not None:
            self._metrics.refused.add()
            self._metrics.refuse(429)
            headers = [(b"x-request-id", caller_of(scope).request_id.encode())]
            await send_error(send, too_many(denied), headers, dialect_of(scope["path"]))
            return
        try:
            await self._app(scope, receive, send)
        finally:
            account.leave()


def _telling(account: Account, dialect: Dialect, send: Send) -> Send:
    """A `send` that adds the headers with the key's remaining limits to the answer."""

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            standing = account.standing(time.monotonic())
            message["headers"] = [*message["headers"], *dialect.limit_headers(standing, time.time())]
        return send(message)

    return sending


def _key(scope: Scope) -> str:
    headers = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    given: bytes = key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return given.decode("utf-8", "surrogateescape")
