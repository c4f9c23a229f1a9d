"""Routes requests to the busiest endpoints directly by their path."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class Direct:
    """Calls an endpoint directly, or passes the request on to FastAPI.

    FastAPI's layers and its search through all routes would take as long as much of the rest of a short request.

    endpoints: plain ASGI applications by method and path, which report their errors themselves.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[tuple[str, str], ASGIApp]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        app = self._app
        if scope["type"] == "http":
            app = self._endpoints.get((scope["method"], scope["path"]), app)
        await app(scope, receive, send)
