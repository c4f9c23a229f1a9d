"""A kept snapshot in a worker's index."""

import math
from dataclasses import dataclass, field

from wire.digest import packed, prefix_digest

# Tokens of context at which attention costs a token as much as everything else: 7.4e9 active parameters take 1.5e10
# FLOP a token, four layers of absorbed latent attention 2.8e5 a token of context.
_ATTENTION_TOKENS = 53_000
# A session's next turn comes within seconds to a minute; half as likely each time this long has passed.
_HALF_LIFE_S = 60.0
# The probability that a snapshot which was continued once is continued again, when an agent takes a turn back.
_CONTINUED = 0.1


@dataclass(slots=True, eq=False)
class Kept:
    """The state after `position` tokens and their latents.

    floor: digest of the whole pages before `position`. tail: the ids after them. parent: its longest kept prefix.
    children: the number of snapshots whose parent it is. pages, slot: its places on the device; () and -1 if it is not
    there. pins: running copies that read it. used: when it was kept or last continued, in seconds. uses: how often it
    was continued. pinned: the number of sessions that end at it. ids, scope: all its tokens, packed, and its prefix
    scope; set only if there is a disk tier.
    """

    position: int
    floor: bytes
    tail: tuple[int, ...]
    parent: "Kept | None"
    used: float
    pages: tuple[int, ...] = ()
    slot: int = -1
    pins: int = 0
    uses: int = 0
    pinned: int = 0
    ids: bytes = b""
    scope: str = ""
    children: set["Kept"] = field(default_factory=set)

    @property
    def digest(self) -> bytes:
        """Digest of the prefix, 16 bytes."""
        return prefix_digest(self.floor, packed(self.tail))

    @property
    def saved_tokens(self) -> int:
        """The tokens that would have to be computed again without it."""
        return self.position - (self.parent.position if self.parent else 0)

    def value(self, now: float) -> float:
        """Its worth: the cost of its tokens, weighted by how likely and how soon they are needed.

        A snapshot that was continued once is less likely to be needed, because its session moved on; one that was
        continued more often is shared. A snapshot at which a session ends does not age.
        """
        begin = self.position - self.saved_tokens
        cost = self.saved_tokens * (1 + (begin + self.position) / 2 / _ATTENTION_TOKENS)
        age = 0.0 if self.pinned else max(0.0, now - self.used)
        wanted = max(_CONTINUED, self.uses - 1) if self.uses else 1
        return cost * wanted * math.exp2(-age / _HALF_LIFE_S)
