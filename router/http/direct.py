"""The endpoints that are asked most, reached by their path alone."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class Direct:
    """Goes to an endpoint at once, or on to the framework, whose search through all routes and layers of its own take
    as long as much of what a short request needs besides.

    endpoints: plain ASGI by method and path, that answer whatever goes wrong by themselves.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[tuple[str, str], ASGIApp]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        app = self._app
        if scope["type"] == "http":
            app = self._endpoints.get((scope["method"], scope["path"]), app)
        await app(scope, receive, send)
