"""Ids of responses and their items."""

import hashlib
import uuid


def new_id(prefix: str) -> str:
    """A new, unique id."""
    return f"{prefix}_{uuid.uuid4().hex}"


class ItemIds:
    """The ids of a response's output items: the same from every router that writes the response."""

    def __init__(self, response_id: str) -> None:
        self._response_id = response_id
        self._count = 0

    def __call__(self, prefix: str) -> str:
        """The next id."""
        self._count += 1
        name = hashlib.blake2b(f"{self._response_id} {self._count}".encode(), digest_size=16)
        return f"{prefix}_{name.hexdigest()}"
