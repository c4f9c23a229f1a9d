"""The requests that a worker was sent and that the load it reports does not contain yet."""

from collections import deque

from wire.codec import WireError


class Unseen:
    """The unseen requests of one connection.

    tokens: in all their prompts together. work: those of them that the worker is to compute.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.work = 0
        self._seen = 0  # how many of this connection's requests the worker has seen
        self._requests: deque[tuple[int, int]] = deque()  # tokens and work of each, oldest first

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, tokens: int, work: int) -> None:
        """Count a request that is sent now."""
        self._requests.append((tokens, work))
        self.tokens += tokens
        self.work += work

    def update(self, seen: int) -> None:
        """Count the worker's first `seen` requests no more; WireError if fewer were sent."""
        newly = seen - self._seen
        if newly > len(self._requests):
            raise WireError(f"the worker has seen {newly} new requests, but only {len(self._requests)} were sent")
        for _ in range(newly):
            tokens, work = self._requests.popleft()
            self.tokens -= tokens
            self.work -= work
        self._seen = seen
