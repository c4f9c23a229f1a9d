"""A rank as an actor. Its own module, so that a rank's process loads nothing of Serve."""

from wire.logs import set_up
from workers.config import Rendezvous, WorkerConfig


class Rank:
    """One rank's process."""

    def run(self, config: WorkerConfig, worker_id: str, rank: int, endpoint: str, rendezvous: Rendezvous) -> None:
        """The rank's whole life."""
        from workers.rank.process import rank_main  # noqa: PLC0415 - the leader, which names this class, stays without torch

        set_up(config.logs, worker=worker_id, rank=str(rank))
        rank_main(config, worker_id, rank, endpoint, rendezvous)
