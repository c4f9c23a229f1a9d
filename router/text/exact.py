"""Remembers answers' token ids by their contents, so that the next turn's prompt has the tokens that the model wrote.

A template renders an assistant's turn again from its text and calls. Its tokens may differ from those generated, by
spaces in a call's JSON or because a text has several tokenizations. The model would then read tokens that it did not
write, and no state kept at the turn's end would match.
"""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

# Bytes of an entry's key, the object of its ids, and its place in the table.
_ENTRY_BYTES = 200


@dataclass(frozen=True, slots=True)
class Said:
    """An assistant's turn as a client got it: its text ("" if none), and the calls' names and arguments."""

    text: str
    calls: tuple[tuple[str, str], ...] = ()


class ExactTurns:
    """Packed token ids of answers, separately for each tenant; the least recently used are removed first.

    Thread-safe.

    Of two answers with the same contents the later one is remembered. most: bytes to keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, tenant: str, said: Said, packed: bytes) -> None:
        """Remember an answer."""
        key = _key(tenant, said)
        with self._lock:
            self._bytes -= _cost(self._known.pop(key, None))
            self._known[key] = packed
            self._bytes += _cost(packed)
            while self._bytes > self._most:
                self._bytes -= _cost(self._known.popitem(last=False)[1])

    def recall(self, tenant: str, said: Said) -> bytes | None:
        """The ids of the tenant's answer with exactly these contents; None if it is not remembered."""
        key = _key(tenant, said)
        with self._lock:
            packed = self._known.get(key)
            if packed is not None:
                self._known.move_to_end(key)
            return packed


def _key(tenant: str, said: Said) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode((tenant, said.text, said.calls)), digest_size=16).digest()


def _cost(packed: bytes | None) -> int:
    return 0 if packed is None else len(packed) + _ENTRY_BYTES
