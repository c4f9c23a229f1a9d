"""Server-sent events of a response."""

from typing import Any

from router.api.shape import encode

# What a stream says in the end, by the response's status; there is no event of its own for a cancelled one.
_CLOSING = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


def event(kind: str, sequence: int, content: dict[str, Any]) -> bytes:
    """One event; `sequence` counts from 0 within its stream."""
    payload = encode({"type": kind, "sequence_number": sequence, **content})
    return b"event: " + kind.encode() + b"\ndata: " + payload + b"\n\n"


def closing(body: dict[str, Any], sequence: int) -> bytes:
    """A stream's last event: the response as it is when it is over."""
    return event(_CLOSING[body["status"]], sequence, {"response": body})


def split(data: bytes) -> list[bytes]:
    """Events that were joined; JSON has no line ends of its own."""
    return [part + b"\n\n" for part in data.split(b"\n\n")[:-1]]
