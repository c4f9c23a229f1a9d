"""Only those with a key reach the APIs, as ASGI around the application."""

from starlette.types import ASGIApp, Receive, Scope, Send

from router.api.dialect import dialect_of
from router.api.send import send_error
from router.errors import ApiError
from router.keys import Keys
from router.metrics import Metrics

_GUARDED = ("/v1/", "/tokenize", "/detokenize")


class Guard:
    """Asks for a key as `Authorization: Bearer KEY` or `x-api-key: KEY`. Probes, status and metrics stay open."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401."""
        if scope["type"] == "http" and scope["path"].startswith(_GUARDED):
            key = _key(scope)
            tenant = self._keys.tenant(key) if key else None
            if tenant is None:
                message = "the API key is unknown" if key else "an API key is needed: Authorization: Bearer KEY"
                error = ApiError(401, message, code="invalid_api_key")
                await send_error(send, error, [], dialect_of(scope["path"]))
                return
            self._metrics.asked(tenant)
        await self._app(scope, receive, send)


def _key(scope: Scope) -> str:
    headers = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    given: bytes = key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    return given.decode("utf-8", "surrogateescape")
