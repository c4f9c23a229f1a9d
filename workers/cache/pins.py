"""Which kept snapshot each session stands at. Pure."""

from collections.abc import Iterable

from workers.cache.kept import Kept


class Pins:
    """After any mix of calls: `pinned` of a snapshot counts the sessions that stand at it."""

    def __init__(self) -> None:
        self._by_session: dict[str, tuple[Kept, float]] = {}

    def __len__(self) -> int:
        return len(self._by_session)

    def pin(self, session: str, kept: Kept, until: float) -> None:
        """The session stands here, and no more where it stood before."""
        self.release(session)
        kept.pinned += 1
        self._by_session[session] = (kept, until)

    def release(self, session: str) -> None:
        """The session stands nowhere; nothing if it did not stand anywhere."""
        pinned = self._by_session.pop(session, None)
        if pinned is not None:
            pinned[0].pinned -= 1

    def expire(self, now: float) -> None:
        """Release the sessions whose time is over."""
        self._release(name for name, (_, until) in self._by_session.items() if until <= now)

    def release_all(self, kept: Kept) -> None:
        """Nobody stands at this snapshot any more."""
        if kept.pinned:
            self._release(name for name, (pinned, _) in self._by_session.items() if pinned is kept)

    def _release(self, sessions: Iterable[str]) -> None:
        for name in list(sessions):
            self.release(name)
