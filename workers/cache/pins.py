"""The kept snapshot at which each session ends. Pure."""

from collections.abc import Iterable

from workers.cache.kept import Kept


class Pins:
    """After any mix of calls `pinned` of a snapshot is the number of sessions that end at it."""

    def __init__(self) -> None:
        self._by_session: dict[str, tuple[Kept, float]] = {}

    def __len__(self) -> int:
        return len(self._by_session)

    def __contains__(self, session: str) -> bool:
        return session in self._by_session

    def pin(self, session: str, kept: Kept, until: float) -> None:
        """Pin a session to a snapshot, and no longer to its previous one."""
        self.release(session)
        kept.pinned += 1
        self._by_session[session] = (kept, until)

    def release(self, session: str) -> Kept | None:
        """Release a session's pin, if it has one. Returns where it was pinned."""
        pinned = self._by_session.pop(session, None)
        if pinned is None:
            return None
        pinned[0].pinned -= 1
        return pinned[0]

    def expire(self, now: float) -> None:
        """Release the sessions that have expired."""
        self._release(name for name, (_, until) in self._by_session.items() if until <= now)

    def release_all(self, kept: Kept) -> None:
        """Release all sessions that are pinned to a snapshot."""
        if kept.pinned:
            self._release(name for name, (pinned, _) in self._by_session.items() if pinned is kept)

    def _release(self, sessions: Iterable[str]) -> None:
        for name in list(sessions):
            self.release(name)
