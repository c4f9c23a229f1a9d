"""How much a worker may keep."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """device_states: states kept beside those of running sequences; 0 keeps nothing at all. host_bytes: of all ranks;
    disk_bytes: likewise, in files.

    state_bytes, token_bytes: of a state and of a token's latents, over all ranks, as the host tier holds them.
    """

    device_states: int = 0
    host_bytes: int = 0
    state_bytes: int = 1
    token_bytes: int = 1
    disk_bytes: int = 0

    def bytes_of(self, tokens: int) -> int:
        """Bytes of a state and the latents of so many tokens."""
        return self.state_bytes + tokens * self.token_bytes
