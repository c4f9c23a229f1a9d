"""Requests whose clients may come back through another router: keeps their tokens for a while.

Pure: time is passed in.
"""

import array
from collections.abc import Callable
from dataclasses import dataclass, field

from wire.protocol import Finish, SeqOutput, Submit


@dataclass(slots=True)
class Entry:
    """A resumable request.

    tokens: all tokens generated so far. until: when it is forgotten; None while it runs with its router. whole: the
    reason of its end, if it ended well. running: its sequence is still here.
    """

    key: bytes
    body: bytes
    request_id: str
    handoff: bool
    tokens: "array.array[int]" = field(default_factory=lambda: array.array("i"))
    whole: Finish | None = None
    running: bool = True
    until: float | None = None


class Resumable:
    """The resumable requests of a worker.

    keep_s: how long a sequence runs on without its router, and how long its tokens are kept after its end.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._by_key: dict[bytes, Entry] = {}
        self._by_request: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._by_request)

    def submitted(self, message: Submit) -> str | None:
        """Add a new sequence.

        The latest one with a key counts; returns an earlier one that runs without a router, to be ended.
        """
        if not message.key:
            return None
        stale = self._by_key.get(message.key)
        entry = Entry(message.key, message.body, message.request_id, message.handoff)
        if message.generated:
            entry.tokens.extend(message.token_ids[-message.generated :])
        if (old := self._by_request.pop(entry.request_id, None)) is not None:
            self._remove(old)
        self._by_request[entry.request_id] = entry
        if entry.handoff:  # routers ask its decode worker, not the prefill worker
            return None
        self._by_key[entry.key] = entry
        if stale is None or stale.until is None or not stale.running:
            return None
        self._remove(stale)
        return stale.request_id

    def took(self, output: SeqOutput, first: Callable[[str, int], list[int]], now: float) -> None:
        """Take a step's outputs.

        first: returns so many of a request's first tokens, which may have come with a snapshot.
        """
        entry = self._by_request.get(output.request_id)
        if entry is None:
            return
        if len(entry.tokens) < output.offset:
            entry.tokens = array.array("i", first(output.request_id, output.offset))
        if len(entry.tokens) == output.offset:
            entry.tokens.extend(output.token_ids)
        # Some of its tokens are not known, so nobody can continue from here.
        elif not entry.handoff and output.token_ids:
            self._remove(entry)
            return
        if output.finish is not None:
            entry.whole = output.finish if output.finish in ("stop", "length") else None
            self._ended(entry, now)

    def dropped(self, request_id: str, now: float) -> None:
        """A router ended its sequence."""
        if (entry := self._by_request.get(request_id)) is not None:
            self._ended(entry, now)

    def orphaned(self, request_id: str, now: float) -> bool:
        """A request's router is gone. Returns whether the sequence runs on without it."""
        entry = self._by_request.get(request_id)
        if entry is None:
            return False
        entry.until = now + self._keep_s
        return True

    def find(self, key: bytes) -> Entry | None:
        """The entry with a key, if it can be continued. One without a token can just as well be computed again."""
        entry = self._by_key.get(key)
        return entry if entry is not None and entry.tokens else None

    def attach(self, request_id: str, now: float) -> Entry | None:
        """A router takes a request over; returns its entry, None if it is not here."""
        entry = self._by_request.get(request_id)
        if entry is not None:
            entry.until = None if entry.running else now + self._keep_s
        return entry

    def expired(self, now: float) -> list[str]:
        """Forget entries that have expired; returns those whose sequences must be ended."""
        over = [e for e in self._by_request.values() if e.until is not None and e.until <= now]
        for entry in over:
            self._remove(entry)
        return [entry.request_id for entry in over if entry.running]

    def _ended(self, entry: Entry, now: float) -> None:
        if not entry.running:
            return
        entry.running = False
        entry.until = now + self._keep_s
        if entry.handoff or not entry.tokens:
            self._remove(entry)

    def _remove(self, entry: Entry) -> None:
        if self._by_request.get(entry.request_id) is entry:
            del self._by_request[entry.request_id]
        if self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]
