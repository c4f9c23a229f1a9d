"""Reads the headers by which a client can come back to its request: its key, and how much of the answer it has."""

import hashlib
import re

from starlette.types import Scope

from router.errors import invalid
from router.relay.keyed import KEY_HEADER, Had, Keyed

_LAST = "last-event-id"
_KEY_FORM = re.compile(r"[\x21-\x7e]{1,255}")
_LAST_FORM = re.compile(r"\d{1,9}f?(\.\d{1,9}f?){0,1023}")


def keyed_of(scope: Scope, body: bytes, tenant: str) -> Keyed | None:
    """The key in the request's headers; None without one. 400 if the headers are malformed."""
    key, last = _header(scope, KEY_HEADER), _header(scope, _LAST)
    if key is None:
        if last is not None:
            raise invalid("Last-Event-ID needs the Idempotency-Key that the request was first sent with", _LAST)
        return None
    if not _KEY_FORM.fullmatch(key):
        raise invalid("Idempotency-Key must be 1 to 255 visible ASCII characters", KEY_HEADER)
    if last is not None and not _LAST_FORM.fullmatch(last):
        raise invalid("Last-Event-ID must be the id of an event of this request's stream", _LAST)
    had = tuple(Had(int(part.rstrip("f")), part.endswith("f")) for part in last.split(".")) if last else ()
    name = hashlib.blake2b(f"{tenant}\0{scope['path']}\0{key}".encode(), digest_size=16).digest()
    return Keyed(name, hashlib.blake2b(body, digest_size=16).digest(), had)


def _header(scope: Scope, name: str) -> str | None:
    given = [value.decode("latin-1").strip() for n, value in scope["headers"] if n == name.encode()]
    if len(given) > 1:
        raise invalid(f"{name} must come once", name)
    return given[0] if given else None
