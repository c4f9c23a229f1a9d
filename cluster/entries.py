"""The directory's bookkeeping of workers. Pure."""

from collections import deque
from dataclasses import dataclass

from wire.progress import Starting
from wire.protocol import Role, WorkerInfo

ENTER_EVERY_S = 2.0
# Far more than the interval, because processes of a busy machine may stand still for seconds. Routers see a worker's
# end much earlier, by their connection to it.
EXPIRY_S = 15.0
_KEPT_FAILURES = 32


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker that ended, or never came up, and why."""

    worker_id: str
    role: Role
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All workers at one moment. `version` changes whenever anything else does.

    served: pools that have had a worker.
    """

    version: str
    workers: tuple[WorkerInfo, ...]
    failures: tuple[Failure, ...]
    starting: tuple[Starting, ...] = ()
    served: frozenset[Role] = frozenset()


class Entries:
    """Entries that expire unless they are renewed. Time is passed in."""

    def __init__(self, epoch: str) -> None:
        """epoch: separates the versions of a restarted directory from the earlier one's."""
        self._epoch = epoch
        self._count = 0
        self._workers: dict[str, tuple[WorkerInfo, float]] = {}
        self._starting: dict[str, tuple[Starting, float]] = {}
        self._served: frozenset[Role] = frozenset()
        self._failures: deque[Failure] = deque(maxlen=_KEPT_FAILURES)

    def enter(self, info: WorkerInfo, now: float) -> bool:
        """Add or renew a worker; returns whether the listing changed."""
        self._starting.pop(info.worker_id, None)
        self._served |= {info.role}
        known = self._workers.get(info.worker_id)
        self._workers[info.worker_id] = (info, now + EXPIRY_S)
        return self._bump(known is None or known[0] != info)

    def start(self, worker: Starting, now: float) -> bool:
        """Record the progress of a worker that does not serve yet; returns whether the listing changed."""
        known = self._starting.get(worker.worker_id)
        self._starting[worker.worker_id] = (worker, now + EXPIRY_S)
        return self._bump(known is None or known[0] != worker)

    def leave(self, worker_id: str) -> bool:
        """Remove a worker; returns whether it was listed."""
        return self._bump(self._workers.pop(worker_id, None) is not None)

    def fail(self, failure: Failure) -> bool:
        """Record a failure and remove the worker."""
        self._workers.pop(failure.worker_id, None)
        self._starting.pop(failure.worker_id, None)
        self._failures.append(failure)
        return self._bump(True)

    def expire(self, now: float) -> bool:
        """Remove workers that were not renewed in time; returns whether there were any."""
        late = [i for i, (_, until) in self._workers.items() if until <= now]
        for worker_id in late:
            del self._workers[worker_id]
        gone = [i for i, (_, until) in self._starting.items() if until <= now]
        for worker_id in gone:
            del self._starting[worker_id]
        return self._bump(bool(late or gone))

    @property
    def listing(self) -> Listing:
        """All workers now, by id."""
        return Listing(
            f"{self._epoch}.{self._count}",
            tuple(info for _, (info, _) in sorted(self._workers.items())),
            tuple(self._failures),
            tuple(worker for _, (worker, _) in sorted(self._starting.items())),
            self._served,
        )

    def made(self, version: str) -> bool:
        """Whether a version was made by this directory, not by an earlier one."""
        return version.startswith(f"{self._epoch}.")

    def _bump(self, changed: bool) -> bool:
        self._count += changed
        return changed
