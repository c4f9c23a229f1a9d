"""The page at `/`: what the cluster does now, without Grafana."""

import math
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from router.api.info import Info
from router.errors import invalid
from router.history import History
from router.http.json import encode
from router.relay.gateway import Gateway

_FOLDER = Path(__file__).parent.parent / "page"
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page(gateway: Gateway, info: Info) -> list[Route]:
    """`/` for browsers, and what it is made of. The figures are those of /status and /metrics, open as these are."""
    history = History(gateway.metrics.collect)
    gateway.alongside(history)

    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return FileResponse(_FOLDER / "index.html", headers={**_HEADERS, "vary": "accept"})
        return await info.root()

    async def file(request: Request) -> Response:
        return FileResponse(_FOLDER / request.url.path.rsplit("/", 1)[1], headers=_HEADERS)

    async def live(request: Request) -> Response:
        text = request.query_params.get("since", "0")
        try:
            since = float(text)
        except ValueError:
            since = math.nan
        if not math.isfinite(since):
            raise invalid(f"'since' is a time in seconds since 1970, not {text[:50]!r}", "since")
        return Response(encode(history.since(since)), media_type="application/json")

    return [
        Route("/", root, methods=["GET"]),
        Route("/page.js", file, methods=["GET"]),
        Route("/page.css", file, methods=["GET"]),
        Route("/live", live, methods=["GET"]),
    ]
