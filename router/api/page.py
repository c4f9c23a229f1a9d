"""The page at `/`, which shows live figures of the cluster without Grafana."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from router.api.info import Info
from router.history import Exchange, History
from router.http.query import json_response, read_query
from router.relay.gateway import Gateway

_FOLDER = Path(__file__).parent.parent / "page"
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Since(BaseModel):
    """Query of /live."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: float = Field(0, allow_inf_nan=False, description="a time in seconds since 1970")


class LivePage:
    """The page at `/` and its files. It shows the figures of /status and of all routers' /metrics."""

    def __init__(self, gateway: Gateway, info: Info, exchange: Exchange | None = None) -> None:
        """exchange: hands this router's figures to the other routers, and returns theirs."""
        self._info = info
        self._history = History(gateway.metrics.collect, exchange)
        gateway.alongside(self._history)
        self.assets = [Route(path, _file, methods=["GET"]) for path in ("/page.js", "/page.css")]

    async def root(self, request: Request) -> Response:
        """The page for browsers, and the list of paths for programs."""
        if "text/html" in request.headers.get("accept", ""):
            return FileResponse(_FOLDER / "index.html", headers={**_HEADERS, "vary": "accept"})
        return await self._info.root(request)

    async def live(self, request: Request) -> Response:
        """The figures of the last five minutes."""
        return json_response(self._history.since(read_query(request, Since).since))


async def _file(request: Request) -> Response:
    return FileResponse(_FOLDER / request.url.path.rsplit("/", 1)[1], headers=_HEADERS)
