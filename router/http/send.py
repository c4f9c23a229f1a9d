"""Sends whole answers as ASGI messages."""

from starlette.types import Send

from router.errors import ApiError
from router.http.dialect import Dialect

Headers = list[tuple[bytes, bytes]]


async def send_json(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send JSON that is already encoded."""
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, headers: Headers, dialect: Dialect) -> None:
    """Send an error in the dialect of the called API. headers: begin with the request's id, if it has one."""
    request_id = headers[0][1].decode() if headers else None
    given = {name for name, _ in headers}
    if request_id is not None and dialect.id_header not in given:
        headers = [*headers, (dialect.id_header, request_id.encode())]
    body = dialect.body(error, request_id)
    await send_json(send, error.status, body, [*headers, *error_headers(error)])


def error_headers(error: ApiError) -> Headers:
    """The headers that an error adds."""
    return [] if error.retry_after_s is None else [(b"retry-after", str(error.retry_after_s).encode())]
