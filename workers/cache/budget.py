"""The sizes of a worker's prefix cache."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a prefix cache; bytes are those of all ranks together.

    device_states: states kept beside those of running sequences; 0 turns the cache off. host_bytes, disk_bytes: in host
    memory and in files. disk_ttl_s: files are kept so long after their last use. state_bytes, token_bytes: the size of
    a state and of a token's latents in the host tier.
    """

    device_states: int = 0
    host_bytes: int = 0
    state_bytes: int = 1
    token_bytes: int = 1
    disk_bytes: int = 0
    disk_ttl_s: float = math.inf

    def bytes_of(self, tokens: int) -> int:
        """The bytes of a state with the latents of so many tokens."""
        return self.state_bytes + tokens * self.token_bytes
