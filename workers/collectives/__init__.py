"""Collective operations between the ranks of one worker."""

from workers.collectives.base import Collectives, RankLost, Solo
from workers.collectives.make import make_collectives
from workers.config import Rendezvous

__all__ = ["Collectives", "RankLost", "Rendezvous", "Solo", "make_collectives"]
