"""Digests of token prefixes. Routers and workers name a prefix by its digest.

A page digest is the running BLAKE2b of all ids up to the end of a whole page, as little-endian int32. A prefix that
ends inside a page is named by the digest of its whole pages and the ids after them. `scope` keeps the prefixes of
different owners apart: it keys the hash.
"""

import array
import hashlib
from collections.abc import Sequence

from wire.tokens import TokenIds

SIZE = 16


def packed(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian int32."""
    if isinstance(token_ids, TokenIds):
        return token_ids.packed
    return array.array("i", token_ids).tobytes()


def prefix_digest(floor: bytes, tail: bytes | memoryview) -> bytes:
    """The digest of a prefix. floor: the digest of its whole pages; tail: the packed ids after them."""
    return hashlib.blake2b(floor + tail, digest_size=SIZE).digest()


def digests_at(token_ids: Sequence[int], positions: Sequence[int], scope: str = "") -> list[bytes]:
    """The digest of the first p ids for each p of `positions`, which must ascend.

    It equals `PageDigests.pages` only where p is a multiple of the page size.
    """
    raw = memoryview(packed(token_ids))
    hasher = _hasher(scope)
    out, done = [], 0
    for position in positions:
        hasher.update(raw[4 * done : 4 * position])
        done = position
        out.append(hasher.digest())
    return out


def _hasher(scope: str) -> "hashlib.blake2b":
    key = hashlib.blake2b(scope.encode(), digest_size=32).digest() if scope else b""
    return hashlib.blake2b(key=key, digest_size=SIZE)


class PageDigests:
    """The page digests of a growing sequence.

    `pages[k]` is the digest of the first (k + 1) * page_size ids, `root` the digest of no ids.
    """

    __slots__ = ("_hasher", "page_size", "pages", "root", "scope")

    def __init__(self, page_size: int, scope: str = "") -> None:
        self._hasher = _hasher(scope)
        self.scope = scope
        self.page_size = page_size
        self.root = self._hasher.digest()
        self.pages: list[bytes] = []

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add the digests of all whole pages of `token_ids`. It must begin with the ids of earlier calls."""
        size = self.page_size
        done = len(self.pages) * size
        whole = len(token_ids) // size * size
        if whole <= done:
            return
        raw = memoryview(packed(token_ids[done:whole]))
        for at in range(0, len(raw), 4 * size):
            self._hasher.update(raw[at : at + 4 * size])
            self.pages.append(self._hasher.digest())

    def floor(self, position: int) -> bytes:
        """The digest of the whole pages before `position`; IndexError if `extend` did not get that far."""
        whole = position // self.page_size
        return self.pages[whole - 1] if whole else self.root

    def at(self, token_ids: Sequence[int], position: int) -> bytes:
        """The digest of the first `position` ids; IndexError as `floor`."""
        return prefix_digest(
            self.floor(position), packed(token_ids[position // self.page_size * self.page_size : position])
        )
