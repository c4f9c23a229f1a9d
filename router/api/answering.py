"""The base of all endpoints that are plain ASGI applications."""

import logging
import sqlite3
import time
from abc import ABC, abstractmethod

from starlette.types import Receive, Scope, Send

from router.config import RouterConfig
from router.errors import ApiError, store_lost
from router.http.body import ClientGone
from router.http.caller import caller_of
from router.http.dialect import Dialect
from router.http.send import Headers, send_error
from router.relay.gateway import Gateway
from router.store.connection import DatabaseError

_log = logging.getLogger(__name__)


class Answering(ABC):
    """An ASGI application for one path, which reports every error in its dialect. name: the path's label in metrics."""

    def __init__(self, gateway: Gateway, name: str, dialect: Dialect) -> None:
        self._gateway = gateway
        self._name = name
        self._dialect = dialect

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> str:
        """Send the answer with `headers` added. Returns the HTTP status, or another outcome, for metrics."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.monotonic()
        headers: Headers = []
        status = "disconnected"
        dialect = self._dialect
        try:
            headers.append((b"x-request-id", caller_of(scope).request_id.encode()))
            status = await self._answer(scope, receive, send, headers)
        except ClientGone:
            pass
        except ApiError as error:
            status = str(error.status)
            await send_error(send, error, headers, dialect)
        except (DatabaseError, sqlite3.Error):
            status = "503"
            _log.exception("request %s failed", caller_of(scope).request_id)
            await send_error(send, store_lost(), headers, dialect)
        except Exception:
            status = "500"
            _log.exception("request %s failed", caller_of(scope).request_id)
            await send_error(send, ApiError(500, "internal error", code="internal_error"), headers, dialect)
        finally:
            seconds = time.monotonic() - arrived
            self._gateway.metrics.answered(self._name, status, seconds, caller_of(scope).priority)


def check_model(model: str, config: RouterConfig) -> None:
    """404 if another model is asked for than the one served."""
    name = config.served_model_name
    if model not in (name, "auto"):
        message = f"no model {model[:200]!r} is served here, but {name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
