"""Server-sent events of a response."""

from typing import Literal

from router.api.responses.answers import Response, ResponseClosed, ResponseEvent
from router.http.json import encode

# What a stream says in the end, by the response's status; there is no event of its own for a cancelled one.
_CLOSING: dict[str, Literal["response.completed", "response.incomplete", "response.failed"]] = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


def event(content: ResponseEvent) -> bytes:
    """One event."""
    return b"event: " + content["type"].encode() + b"\ndata: " + encode(content) + b"\n\n"


def closing(body: Response, sequence: int) -> bytes:
    """A stream's last event: the response as it is when it is over. sequence: how many came before."""
    last: ResponseClosed = {"type": _CLOSING[body["status"]], "sequence_number": sequence, "response": body}
    return event(last)


def split(data: bytes) -> list[bytes]:
    """Events that were joined; JSON has no line ends of its own."""
    return [part + b"\n\n" for part in data.split(b"\n\n")[:-1]]
