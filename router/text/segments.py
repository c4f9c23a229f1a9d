"""A cache of token ids of the texts between markers, so that a conversation's next turn encodes only its new texts."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence


class SegmentCache:
    """Packed token ids of texts; the least recently used are removed first. Thread-safe.

    encode: encodes several texts at once. most: bytes of texts and ids to keep.
    """

    def __init__(self, encode: Callable[[list[str]], list[bytes]], most: int) -> None:
        self._encode = encode
        self._most = most
        self._known: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """Return the packed ids of each text."""
        found = self._recall(texts)
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            made = dict(zip(new, self._encode(new), strict=True))
            self._keep(made)
            found |= made
        return [found[text] for text in texts]

    def _recall(self, texts: Sequence[str]) -> dict[str, bytes]:
        known, found = self._known, {}
        with self._lock:
            for text in texts:
                if (ids := known.get(text)) is not None:
                    known.move_to_end(text)
                    found[text] = ids
        return found

    def _keep(self, made: dict[str, bytes]) -> None:
        with self._lock:
            for text, ids in made.items():
                if text not in self._known:
                    self._known[text] = ids
                    self._bytes += _cost(text, ids)
            while self._bytes > self._most:
                self._bytes -= _cost(*self._known.popitem(last=False))


def _cost(text: str, ids: bytes) -> int:
    """The bytes of an entry: both objects and its place in the table."""
    return text.__sizeof__() + ids.__sizeof__() + 128
