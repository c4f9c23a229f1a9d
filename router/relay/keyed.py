"""A request that its client may come back for, through whatever router."""

import hashlib
from dataclasses import dataclass

from router.errors import ApiError

KEY_HEADER = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Had:
    """What a client has of a choice: what its first `tokens` say, and whether it was told of its end."""

    tokens: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Keyed:
    """A request that its client may come back for.

    name: of the key, the same for all routers, and another for each tenant. body: a digest of what it asks. had: by
    choice; () for nothing.
    """

    name: bytes
    body: bytes
    had: tuple[Had, ...]

    @property
    def seed(self) -> int:
        """For the sampling of a request that names none: whoever computes it gets the same answer."""
        return int.from_bytes(self.name[:8], "little") >> 1

    def choice(self, index: int) -> bytes:
        """The name of one of its choices."""
        return hashlib.blake2b(self.name + index.to_bytes(4, "little"), digest_size=16).digest()


def reused() -> ApiError:
    """The key came with another request before."""
    message = "this Idempotency-Key was used with another body; give each request a key of its own"
    return ApiError(422, message, param=KEY_HEADER, code="idempotency_key_reused")


def taken_over() -> ApiError:
    """The client has come back through another connection."""
    message = "the request was sent again with the same Idempotency-Key; the later connection gets the answer"
    return ApiError(409, message, param=KEY_HEADER, code="taken_over")
