"""The totals of the prefix cache since the worker's start."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from wire.protocol import Miss, Tier

# Where a prompt's snapshot was: on this worker's device, in its host memory, on its disk, or at another worker.
Origin = Literal["device", "host", "disk", "peer"]
TIERS: tuple[Tier, ...] = ("device", "host", "disk")
ORIGINS: tuple[Origin, ...] = ("device", "host", "disk", "peer")
MISSES: tuple[Miss, ...] = get_args(Miss)


@dataclass(slots=True)
class CacheTotals:
    """Totals since the worker's start.

    A request with a hit and further tokens to compute counts as both hit and miss.

    hits, hit_tokens: requests that continued a snapshot, and the prompt tokens that it spared, by origin. misses,
    missed_tokens: requests and prompt tokens that were computed, by reason. evicted: snapshots, by tier. saved_s: the
    seconds that computing the hits' tokens would have taken.
    """

    hits: dict[Origin, int] = field(default_factory=lambda: dict.fromkeys(ORIGINS, 0))
    hit_tokens: dict[Origin, int] = field(default_factory=lambda: dict.fromkeys(ORIGINS, 0))
    misses: dict[Miss, int] = field(default_factory=lambda: dict.fromkeys(MISSES, 0))
    missed_tokens: dict[Miss, int] = field(default_factory=lambda: dict.fromkeys(MISSES, 0))
    evicted: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(TIERS, 0))

    saved_s: float = 0.0

    def began(self, origin: Origin | None, begin: int, prompt: int, miss: Miss, token_s: float) -> None:
        """Count a prompt whose computing begins after `begin` tokens, which came from `origin`.

        token_s: seconds to compute one token of a prompt.
        """
        self.saved_s += begin * token_s
        if origin is not None:
            self.hits[origin] += 1
            self.hit_tokens[origin] += begin
        self.misses[miss] += 1
        self.missed_tokens[miss] += prompt - begin
