"""Requests with an Idempotency-Key, for which a client may come back through any router."""

import hashlib
from dataclasses import dataclass

from router.errors import ApiError

KEY_HEADER = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Had:
    """What a client already has of a choice: the text of its first `tokens`, and whether it knows the end."""

    tokens: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Keyed:
    """A request with a key.

    name: of the key; all routers have the same, each tenant another. body: a digest of the request's body. had: what
    the client has of each choice; () if nothing. tells_ids: whether the events of its stream have ids.
    """

    name: bytes
    body: bytes
    had: tuple[Had, ...]
    tells_ids: bool = True

    @property
    def seed(self) -> int:
        """The seed for a request without one, so that every worker computes the same answer."""
        return int.from_bytes(self.name[:8], "little") >> 1

    def choice(self, index: int) -> bytes:
        """The name of one of the request's choices."""
        return hashlib.blake2b(self.name + index.to_bytes(4, "little"), digest_size=16).digest()


def reused() -> ApiError:
    """Make the error for a key that came with another request before."""
    message = "this Idempotency-Key was used with another body; give each request a key of its own"
    return ApiError(422, message, param=KEY_HEADER, code="idempotency_key_reused")


def taken_over() -> ApiError:
    """Make the error for a connection whose client has come back through another one."""
    message = "the request was sent again with the same Idempotency-Key; the later connection gets the answer"
    return ApiError(409, message, param=KEY_HEADER, code="taken_over")
