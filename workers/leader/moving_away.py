"""A worker that is about to end gives its answers up to others. Pure."""

from workers.leader.actions import Action, Told
from workers.leader.endings import Endings
from workers.schedule.scheduler import Scheduler

# Seconds for a router to find another worker and for that one to pull. Then the snapshot kept for it is given up.
_MOVE_S = 5.0
# For the next worker to take what is computed of an answer by now, while the answer goes on here.
_COPY_S = 2.0


class MovingAway:
    """Announces each answer, and gives it up once the next worker has what is kept of it."""

    def __init__(self, scheduler: Scheduler, endings: Endings) -> None:
        self._scheduler = scheduler
        self._endings = endings

    def move_away(self, now: float) -> list[Action]:
        """Give up all answers: they continue at other workers, from their states, which are kept here for a while.

        First each one's router is told what is kept of it, so that the next worker takes that while the answer goes on
        here. It is given up once the router says that it is there, or in _COPY_S.
        """
        actions: list[Action] = []
        for seq in self._scheduler.moving.answers():
            if seq.leave_by is None:
                seq.leave_by = now
                if (told := self._scheduler.moving.announce(seq, now + _COPY_S + _MOVE_S, now)) is not None:
                    seq.leave_by = now + _COPY_S
                    actions.append(Told(told))
            if seq.leave_by <= now:
                actions += self._endings.cancel(seq)
                actions += self._endings.end(self._scheduler.moving.move(seq, now + _MOVE_S, now))
        return actions

    def copied(self, request_id: str) -> None:
        """Give an answer up, because the next worker has the snapshot that its router was told of."""
        seq = self._scheduler.sequences.get(request_id)
        if seq is not None and seq.leave_by is not None:
            seq.leave_by = 0.0
