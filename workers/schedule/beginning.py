"""Finds the kept snapshot from which a sequence may continue. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from wire.protocol import Miss
from workers.cache.cache import PrefixCache
from workers.cache.kept import Kept
from workers.cache.points import keep_points
from workers.schedule.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a sequence begins.

    kept: the longest snapshot that it may continue; None to begin at zero. awaited: another sequence is about to keep a
    longer snapshot, and waiting for it costs less than computing the same tokens. missed: the reason why the tokens
    after `kept` have to be computed. keeps: the positions at which its state is to be kept.
    """

    kept: Kept | None
    awaited: bool
    missed: Miss
    keeps: list[int]

    @property
    def position(self) -> int:
        """The number of tokens that need not be computed."""
        return self.kept.position if self.kept else 0


def find(seq: Sequence, cache: PrefixCache, active: Iterable[Sequence]) -> Beginning:
    """Find the best beginning for a sequence that would be computed here. active: the running sequences."""
    whole_prompt = seq.sampling.prompt_logprobs is not None and not seq.generated
    known, reach = seq.known, seq.reach
    kept = None if whole_prompt else cache.index.longest(known, reach)
    position = kept.position if kept else 0
    seen = cache.index.seen(known, reach)
    keeps: list[int] = []
    if cache.slots.size and not whole_prompt:
        branch = seen if seen > position else None
        keeps = keep_points(seq.boundaries, seq.prompt_tokens, position, cache.page_size, branch)
    awaited = not whole_prompt and any(_promises(other, seq, position + cache.page_size) for other in active)
    return Beginning(kept, awaited, _why_missed(seq, cache, position, seen), keeps)


def _why_missed(seq: Sequence, cache: PrefixCache, position: int, seen: int) -> Miss:
    """The reason why most of the tokens after `position` were missed.

    seen: the tokens that were computed here before.
    """
    known, reach = seq.known, seq.reach
    lost: Miss = "evicted" if seen > position and cache.index.was_evicted(known, position, reach) else "no_state"
    foreign = max(seq.foreign, cache.index.foreign(known, reach))
    reached: list[tuple[int, Miss]] = [(seen, lost), (foreign, "weights"), (seq.rewritten, "template")]
    # Tokens computed here before are known in whole pages.
    found = [(tokens // cache.page_size, why) for tokens, why in reached if tokens > position]
    return max(found, key=lambda one: one[0], default=(0, "new"))[1]


def _promises(other: Sequence, seq: Sequence, above: int) -> bool:
    """Whether a running sequence will keep a state of more than `above` tokens from which `seq` could continue."""
    if other.priority > seq.priority:
        return False
    return any(above <= p <= seq.reach and other.known.common(seq.known, p) for p in other.keeps)
