"""What the prefix cache did so far."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from wire.protocol import Miss, Tier

# Where a prompt's snapshot was: kept on this worker's device, on its host, on its disk, or at another worker.
Origin = Literal["device", "host", "disk", "peer"]
TIERS: tuple[Tier, ...] = ("device", "host", "disk")
ORIGINS: tuple[Origin, ...] = ("device", "host", "disk", "peer")
MISSES: tuple[Miss, ...] = get_args(Miss)


@dataclass(slots=True)
class CacheTotals:
    """Since the worker's start. A request with a hit and tokens left to compute counts in both.

    hits, hit_tokens: requests that began from a snapshot, and the prompt tokens they did not compute, by origin.
    misses, missed_tokens: requests and prompt tokens that were computed, by reason. evicted: snapshots, by tier.
    saved_s: what computing the hits' tokens would have taken.
    """

    hits: dict[Origin, int] = field(default_factory=lambda: dict.fromkeys(ORIGINS, 0))
    hit_tokens: dict[Origin, int] = field(default_factory=lambda: dict.fromkeys(ORIGINS, 0))
    misses: dict[Miss, int] = field(default_factory=lambda: dict.fromkeys(MISSES, 0))
    missed_tokens: dict[Miss, int] = field(default_factory=lambda: dict.fromkeys(MISSES, 0))
    evicted: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))

    saved_s: float = 0.0

    def began(self, origin: Origin | None, begin: int, prompt: int, miss: Miss, token_s: float) -> None:
        """A prompt begins to be computed after `begin` tokens, which came from `origin`.

        token_s: seconds a token of a prompt takes to compute.
        """
        self.saved_s += begin * token_s
        if origin is not None:
            self.hits[origin] += 1
            self.hit_tokens[origin] += begin
        self.misses[miss] += 1
        self.missed_tokens[miss] += prompt - begin
