"""Remembers to which tokens conversations' beginnings were rendered, to explain misses of the prefix cache."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from wire.digest import digests_at
from wire.tokens import TokenIds

_SIZE = 16


def beginnings(head: Any, turns: Iterable[Any]) -> tuple[bytes, ...]:
    """Digests of a conversation's content: of its head (tools, instructions), and up to each of its turns.

    All of it is plain data. Equal digests are of equal contents.
    """
    hasher = hashlib.blake2b(digest_size=_SIZE)
    out = []
    for part in (head, *turns):
        packed = msgspec.json.encode(part)  # msgpack has no integers beyond 64 bits
        hasher.update(len(packed).to_bytes(8, "little") + packed)
        out.append(hasher.digest())
    return tuple(out)


class Renderings:
    """The tokens of conversations seen, as digests; the least recently used go first. For any thread.

    most: beginnings to remember, of about 250 bytes each.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, bytes], tuple[int, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, scope: str, contents: Sequence[bytes], token_ids: TokenIds, boundaries: Sequence[int]) -> int:
        """The number of tokens to which the prompt's beginning was last rendered, if they differ from now; else 0.

        contents: as `beginnings` has them. boundaries: how many tokens there are up to each rendered turn's end. The
        longest beginning that is known decides, and the prompt's are known from now on.
        """
        if not boundaries:
            return 0
        with self._lock:
            found = next((self._known[scope, c] for c in reversed(contents) if (scope, c) in self._known), (0, b""))
        length, before = found
        head, end = boundaries[0], boundaries[-1]
        places = sorted({min(length, len(token_ids)), head, end})
        digests = dict(zip(places, digests_at(token_ids, places), strict=True))
        with self._lock:
            # A template that writes the instructions into a turn ends no turn with them.
            if len(boundaries) >= len(contents):
                self._keep(scope, contents[0], head, digests[head])
            self._keep(scope, contents[-1], end, digests[end])
        return length if length and digests.get(length) != before else 0

    def _keep(self, scope: str, content: bytes, length: int, digest: bytes) -> None:
        self._known[scope, content] = (length, digest)
        self._known.move_to_end((scope, content))
        while len(self._known) > self._most:
            self._known.popitem(last=False)
