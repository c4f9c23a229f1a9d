"""Server-sent events of a response."""

from typing import Literal

from router.api.responses.answers import Response, ResponseClosed, ResponseEvent
from router.http.json import encode

# The last event of a stream by the response's status. A cancelled response has no event of its own.
_CLOSING: dict[str, Literal["response.completed", "response.incomplete", "response.failed"]] = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


def event(content: ResponseEvent) -> bytes:
    """Encode one event."""
    return b"event: " + content["type"].encode() + b"\ndata: " + encode(content) + b"\n\n"


def closing(body: Response, sequence: int) -> bytes:
    """A stream's last event, with the final response. sequence: the number of events before it."""
    last: ResponseClosed = {"type": _CLOSING[body["status"]], "sequence_number": sequence, "response": body}
    return event(last)


def split(data: bytes) -> list[bytes]:
    """Split joined events. Their JSON contains no line ends."""
    return [part + b"\n\n" for part in data.split(b"\n\n")[:-1]]
