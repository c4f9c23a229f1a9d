"""HTTP as uvicorn speaks it, with bounds on what comes before an application is asked."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from router.errors import ApiError
from router.http.entrance import MAX_HEAD_BYTES

HEAD_TIMEOUT_S = 30.0


class LimitedHttp(HttpToolsProtocol):
    """A head, or trailers, of at most so many bytes (431), whole within so many seconds (408)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: asyncio.TimerHandle | None = None
        self._in_body = False
        self._passed = False  # the latest bytes brought more than a head
        self._unfinished = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_wait()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._wait()
        self._passed = False
        super().data_received(data)
        self._unfinished = 0 if self._passed else self._unfinished + len(data)
        if self._unfinished > MAX_HEAD_BYTES:
            message = f"the head of the request exceeds {MAX_HEAD_BYTES} bytes"
            self._refuse(ApiError(431, message, code="head_too_large"))

    def on_headers_complete(self) -> None:
        self._end_wait()
        self._in_body = self._passed = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._passed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._passed = False, True
        super().on_message_complete()

    def _wait(self) -> None:
        if self._waiting is None:
            message = f"no whole head of a request came within {HEAD_TIMEOUT_S:g} s"
            error = ApiError(408, message, code="head_timeout")
            self._waiting = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, error)

    def _end_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = error.body()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
