"""The router as an ASGI application."""

import asyncio
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from router.access.keys import Keys
from router.access.limits_headers import LIMIT_HEADERS
from router.api.answering import Answering
from router.api.info import Info
from router.api.page import LivePage
from router.api.responses.routes import keeping
from router.api.sessions import SessionsApi
from router.api.snapshots import SnapshotsApi
from router.api.workers import WorkersApi
from router.batch.batches import Batches
from router.batch.files import Files
from router.batch.message_batches import MessageBatches
from router.batch.runner import BatchRunner
from router.config import Pools, RouterConfig
from router.endpoints import ENDPOINTS, LINES, LISTED, Parts, asks_for_key
from router.errors import ApiError, store_lost
from router.history import Exchange
from router.http.body import ClientGone
from router.http.caller import caller_of
from router.http.dialect import dialect_of
from router.http.direct import Direct
from router.http.entrance import Entrance
from router.http.guard import Guard
from router.http.send import error_headers
from router.openapi.document import publish
from router.relay.gateway import Gateway
from router.relay.link import ListedWorker
from router.store.connection import DatabaseError
from router.store.store import Store

if TYPE_CHECKING:
    from router.tracing import Tracing

_log = logging.getLogger(__name__)
__all__ = ["Gateway", "ListedWorker", "Pools", "RouterConfig", "create_app"]


class RouterApp(FastAPI):
    """FastAPI inside plain ASGI layers.

    What these answer avoids FastAPI's own layers, which would take as long as much of the rest of a short request.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.outermost: ASGIApp = super().__call__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self.outermost(scope, receive, send)


def create_app(gateway: Gateway, exchange: Exchange | None = None) -> FastAPI:
    """Make the HTTP APIs of a gateway. The caller starts and closes the gateway, on the event loop that serves.

    exchange: hands this router's figures to the other routers and returns theirs, for the live page; None if it is the
    only router.
    """
    app = RouterApp(title="ling-cluster router", openapi_url=None, redirect_slashes=False)
    parts = _parts(gateway, exchange)
    # Plain routes, because FastAPI's parsing and dependencies would cost more than the rest of a request's way to the
    # workers.
    handlers = {(e.method, e.path): e.handler(parts) for e in ENDPOINTS}
    app.router.routes.extend(Route(path, handler, methods=[method]) for (method, path), handler in handlers.items())
    app.router.routes.extend(parts.page.assets)
    direct = {place: handler for place, handler in handlers.items() if isinstance(handler, Answering)}
    app.outermost = Direct(app.outermost, direct)
    if gateway.config.api_keys is not None:
        keys = Keys(gateway.config.api_keys, gateway.config.replicas)
        app.outermost = Guard(app.outermost, keys, gateway.metrics, asks_for_key)
    if gateway.config.cors_origins:
        # Outside the guard, because a browser sends its preflight request without a key.
        app.outermost = CORSMiddleware(
            app.outermost,
            allow_origins=list(gateway.config.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after", *LIMIT_HEADERS],
        )
    app.outermost = Entrance(app.outermost, gateway.config.served_model_name, _tracing(gateway))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(ClientGone, _gone)
    for lost in (DatabaseError, sqlite3.Error):
        app.add_exception_handler(lost, _store_lost)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _parts(gateway: Gateway, exchange: Exchange | None) -> Parts:
    """Make the objects that answer requests. Those that are services start and end with the gateway."""
    config, info = gateway.config, Info(gateway, LISTED)
    create, stored, sessions, snapshots = keeping(gateway)
    files = batches = message_batches = None
    if config.data_dir is not None:
        store = Store(config.data_dir, config.database_url)
        runner = BatchRunner(gateway, store, LINES)
        gateway.alongside(runner)
        files, batches = Files(store, config), Batches(store, runner, config)
        message_batches = MessageBatches(store, runner, config)
    page = LivePage(gateway, info, exchange)
    shown = SessionsApi(gateway, sessions)
    files_of = SnapshotsApi(gateway, sessions, snapshots, shown)
    workers = WorkersApi(gateway)
    return Parts(
        gateway,
        info,
        page,
        publish(config),
        create,
        stored,
        sessions,
        shown,
        files_of,
        workers,
        files,
        batches,
        message_batches,
    )


def _tracing(gateway: Gateway) -> "Tracing | None":
    config = gateway.config
    if config.otlp_endpoint is None:
        return None
    from router.tracing import Tracing  # noqa: PLC0415 - routers that trace nothing load nothing of it

    tracing = Tracing(config.otlp_endpoint, config.trace_share, config.name)

    async def close() -> None:
        await asyncio.to_thread(tracing.close)

    gateway.closers.append(close)
    return tracing


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:200], request.method
    message, code = {
        404: (f"there is nothing at {path}; GET / lists what there is", "not_found"),
        405: (f"{path} does not take {method}", "method_not_allowed"),
    }.get(error.status_code, (error.detail, "http_error"))
    answer = _answer(request, ApiError(error.status_code, message, code=code))
    answer.headers.update(error.headers or {})
    return answer


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(request, error)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # the client has left and does not read it


async def _store_lost(request: Request, error: Exception) -> Response:
    _log.error("request %s failed", caller_of(request.scope).request_id, exc_info=error)
    return _answer(request, store_lost())


async def _unexpected(request: Request, error: Exception) -> Response:
    return _answer(request, ApiError(500, "internal error", code="internal_error"))


def _answer(request: Request, error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    dialect, request_id = dialect_of(request.url.path), caller_of(request.scope).request_id
    headers |= {"x-request-id": request_id, dialect.id_header.decode(): request_id}
    body = dialect.body(error, request_id)
    return Response(body, error.status, headers, "application/json")
