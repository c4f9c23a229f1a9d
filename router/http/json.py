"""Encodes JSON for answers."""

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
# Characters that are legal in JSON strings, but line ends to clients that split lines as Unicode does.
_LINE_ENDS = (("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"), ("\x85".encode(), b"\\u0085"))


def encode(content: Any) -> bytes:
    """Encode JSON so that it contains no character that any client takes for a line end."""
    body = _encode(content)
    for line_end, escaped in _LINE_ENDS:
        if line_end in body:
            body = body.replace(line_end, escaped)
    return body
