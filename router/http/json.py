"""JSON as it is sent."""

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
# Legal in JSON strings, but line ends to clients that split events and lines as Unicode does.
_LINE_ENDS = (("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"), ("\x85".encode(), b"\\u0085"))


def encode(content: Any) -> bytes:
    """JSON without any line end that JSON does not escape by itself."""
    body = _encode(content)
    for line_end, escaped in _LINE_ENDS:
        if line_end in body:
            body = body.replace(line_end, escaped)
    return body
