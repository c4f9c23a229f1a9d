"""Chooses the positions at which a sequence's linear state is kept. Pure."""

from collections.abc import Sequence

# A turn longer than this gets states inside, at distances from its end that double from here on.
SPARSE_TOKENS = 4096


def keep_points(
    boundaries: Sequence[int], prompt_tokens: int, begin: int, page_size: int, branch: int | None = None
) -> list[int]:
    """Ascending positions p with begin < p < prompt_tokens: states are kept after the first p tokens.

    boundaries: the ends of the system prompt with its tools and of each turn; the first one is kept because sessions
    share it. begin: tokens that need not be computed. branch: the position after which another sequence differed. The
    state one token before the prompt's end serves those that repeat the prompt as well as those that extend it: even a
    repeated prompt has to compute one token.
    """
    inner = [b for b in boundaries if begin < b < prompt_tokens]
    points = {prompt_tokens - 1, *inner[:1]}
    if branch is not None:
        points.add(branch)
    points = {p for p in points if begin < p < prompt_tokens}
    for start, stop in zip((begin, *sorted(points)), sorted(points), strict=False):
        distance = SPARSE_TOKENS
        while stop - distance > start:
            points.add(_settle(stop - distance, start, inner, page_size))
            distance *= 2
    return sorted(p for p in points if begin < p < prompt_tokens)


def _settle(target: int, start: int, boundaries: Sequence[int], page_size: int) -> int:
    """The last end of a turn within the page before `target`, else the page's start."""
    near = [b for b in boundaries if max(start, target - SPARSE_TOKENS // 2) < b <= target]
    return near[-1] if near else target // page_size * page_size
