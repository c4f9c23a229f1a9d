"""The messages between a leader and a fork server, over a separate connection for each rank.

The leader sends LENGTH and a pickled RankJob; the rank answers with PID, and at its end with ENDED.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from workers.config import Rendezvous, WorkerConfig

LENGTH = struct.Struct("<I")
PID = struct.Struct("<I")
# Sent by a rank that ends in order; a connection that closes without it has lost its rank.
ENDED = b"ended"


@dataclass(frozen=True, slots=True)
class RankJob:
    """What a forked rank runs: the arguments of `rank_main`, and its whole environment."""

    config: WorkerConfig
    worker_id: str
    rank: int
    endpoint: str
    rendezvous: Rendezvous
    gpu: int | None
    environment: Mapping[str, str]
