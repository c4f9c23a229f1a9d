"""A leader's view of its grammars: those that rank 0 has compiled, and the sequences that wait for others.

Pure: orders to rank 0 go through `tell`.
"""

from collections.abc import Callable, Iterable

from wire.protocol import Grammar
from workers.schedule.sequence import Sequence
from workers.schedule.step import Compile, Compiled, Forget

# Unused grammars that are kept for further requests; those in use are kept in any case.
_KEEP = 256


class GrammarDesk:
    """Holds sequences outside the scheduler until their grammar is compiled, so that steps never wait.

    admitted: returns the scheduler's sequences.
    """

    def __init__(
        self,
        tell: Callable[[Compile | Forget], None],
        admitted: Callable[[], Iterable[Sequence]],
        keep: int = _KEEP,
    ) -> None:
        self._tell = tell
        self._admitted = admitted
        self._keep = keep
        self._ready: dict[Grammar, None] = {}  # least recently used first
        self._waiting: dict[Grammar, list[Sequence]] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether a request waits for its grammar."""
        return any(s.request_id == request_id for waiting in self._waiting.values() for s in waiting)

    @property
    def idle(self) -> bool:
        """Whether no request waits."""
        return not any(self._waiting.values())

    def holds_back(self, seq: Sequence) -> bool:
        """Whether a sequence must wait for its grammar before it is scheduled; `compiled` returns it later."""
        grammar = seq.sampling.grammar
        if grammar is None:
            return False
        if grammar in self._ready:
            self._ready[grammar] = self._ready.pop(grammar)
            return False
        if grammar not in self._waiting:
            self._waiting[grammar] = []
            self._tell(Compile(grammar))
        self._waiting[grammar].append(seq)
        return True

    def compiled(self, message: Compiled) -> list[Sequence]:
        """Take rank 0's answer.

        Returns the sequences that waited, to be scheduled, or to be ended if it has an error.
        """
        waited = self._waiting.pop(message.grammar, [])
        if message.error is None:
            self._ready[message.grammar] = None
            self._forget_unused(waited)
        return waited

    def drop(self, request_id: str) -> None:
        """Forget a request that was given up; unknown ids are ignored."""
        for waiting in self._waiting.values():
            waiting[:] = [s for s in waiting if s.request_id != request_id]

    def _forget_unused(self, next_up: list[Sequence]) -> None:
        if len(self._ready) <= self._keep:
            return
        used = {s.sampling.grammar for s in (*self._admitted(), *next_up)}
        for grammar in [g for g in self._ready if g not in used][: len(self._ready) - self._keep]:
            del self._ready[grammar]
            self._tell(Forget(grammar))
