"""uvicorn's HTTP protocol with limits on a request's head and on how slowly a client may read its answer."""

import asyncio
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from router.errors import ApiError
from router.http.entrance import MAX_HEAD_BYTES

HEAD_TIMEOUT_S = 30.0
# A client must read what is buffered for it within so many seconds plus the time that this rate takes.
READ_TIMEOUT_S = 30.0
LEAST_BYTES_PER_S = 4096


def _unframed(cycle: RequestResponseCycle) -> None:
    """Send the answer without chunks, which HTTP/1.0 lacks: the end of the connection ends the answer."""
    send = cycle.send

    async def unframed(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.chunked_encoding = cycle.keep_alive = False
    cycle.send = unframed  # type: ignore[method-assign]


class _Joined:
    """Joins an answer's head with the bytes that follow at once, if there are any.

    A separate write would cost a system call, and wake the client for a head alone.
    """

    def __init__(self, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop) -> None:
        self._cycle, self._loop = cycle, loop
        self._transport = cycle.transport
        self._held = b""
        cycle.transport = self  # type: ignore[assignment]

    def write(self, data: bytes) -> None:
        """Hold the first bytes until the next ones, or until the loop has nothing else to run."""
        if self._held:
            self._held += data
            self._flush()
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is held, and close."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closing."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._cycle.transport = self._transport
            self._transport.write(held)


class LimitedHttp(HttpToolsProtocol):
    """Limits the bytes of a request's head and trailers (431) and the seconds in which they arrive (408).

    The connection of a client that does not read its answer is cut; the sender then sees that the client left.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: asyncio.TimerHandle | None = None
        self._in_body = False
        self._passed = False  # whether the latest bytes contained more than a head
        self._unfinished = 0
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_wait()
        self._end_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._expect_reading()

    def data_received(self, data: bytes) -> None:
        self._passed = False
        super().data_received(data)
        self._unfinished = 0 if self._passed else self._unfinished + len(data)
        if self._unfinished and not self._in_body:
            self._wait()
        if self._unfinished > MAX_HEAD_BYTES:
            message = f"the head of the request exceeds {MAX_HEAD_BYTES} bytes"
            self._refuse(ApiError(431, message, code="head_too_large"))

    def on_headers_complete(self) -> None:
        self._end_wait()
        self._in_body = self._passed = True
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0" and self.cycle is not None:
            _unframed(self.cycle)
        if self.cycle is not None:
            _Joined(self.cycle, self.loop)

    def on_body(self, body: bytes) -> None:
        self._passed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._passed = False, True
        super().on_message_complete()

    def _wait(self) -> None:
        if self._waiting is None:
            message = f"no complete head of a request arrived within {HEAD_TIMEOUT_S:g} s"
            error = ApiError(408, message, code="head_timeout")
            self._waiting = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, error)

    def _end_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _expect_reading(self) -> None:
        if self._reading is None:
            seconds = READ_TIMEOUT_S + self.transport.get_write_buffer_size() / LEAST_BYTES_PER_S
            self._reading = self.loop.call_later(seconds, self._cut_unread)

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _cut_unread(self) -> None:
        self._reading = None
        # While an answer is being written without waiting for its client, the buffer is in use all the time.
        stuck = self.flow.write_paused or self.cycle is None or self.cycle.response_complete
        if stuck and self.transport.get_write_buffer_size():
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = error.body()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()
