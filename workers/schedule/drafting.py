"""Drafts in a worker's steps: how many each sequence takes, and how many verified ones are accepted. Pure."""

from collections import Counter
from collections.abc import Iterable

from workers.cache.allocator import Allocator
from workers.schedule.limits import Limits
from workers.schedule.sequence import Sequence
from workers.schedule.speculation import Speculation
from workers.schedule.step import Commit


class Drafting:
    """speculation: decides how many drafts pay."""

    def __init__(self, limits: Limits, pages: Allocator) -> None:
        self._limits = limits
        self._pages = pages
        self.speculation = Speculation(limits.drafts, limits.adapts)
        self._stood: list[tuple[int, int]] = []  # slots of verified rows, and how many of their tokens stand
        self._wanted: int | None = None

    def each(self, active: Iterable[Sequence], budget: int) -> int:
        """Drafts for each decoding sequence in a step with this token budget, after one token for each."""
        decoding = sum(seq.pending == 1 for seq in active)
        if self._wanted is not None and decoding:
            wanted, self._wanted = self._wanted, None
            return min(wanted, max(budget - decoding, 0) // decoding)
        return self.speculation.drafts(decoding, budget - decoding)

    def stay(self, drafts: int, decoding: int, budget: int) -> bool:
        """Whether the next step has as many drafts as this one; if not, `each` says how many it has."""
        if self._wanted is None:
            self._wanted = self.speculation.drafts(decoding, budget - decoding)
        if self._wanted != drafts:
            return False
        self._wanted = None
        return True

    def fitting(self, seq: Sequence, drafts: int) -> int:
        """How many of these drafts a decoding sequence can use.

        It gets free pages for them, but takes none from others.
        """
        # For the first token after a snapshot there is no hidden state to draft from.
        if seq.handoff or not seq.generated or not seq.admitted_on_ranks:
            return 0
        drafts = min(drafts, seq.most - len(seq.tokens) - 1)
        size = self._limits.page_size
        more = -(-(seq.computed + 1 + drafts) // size) - len(seq.pages)
        if drafts > 0 and more > 0:
            seq.pages += self._pages.take(min(more, self._pages.free))
            drafts = min(drafts, len(seq.pages) * size - seq.computed - 1)
        return max(drafts, 0)

    def verified(self, seq: Sequence, drafts: int, gained: int, stood: int) -> None:
        """A row with drafts gained so many tokens, all computed but the last; `stood` of its drafts were accepted."""
        seq.computed += gained - 1
        self._stood.append((seq.slot, gained))
        self.speculation.verified(drafts, {stood: 1})

    def verified_batch(self, rows: Iterable[tuple[Sequence, tuple[int, ...], object]], drafts: int) -> int:
        """Record the tokens that rows with so many drafts gained; returns how many drafts were accepted."""
        stood = [(seq.slot, len(gained)) for seq, gained, _ in rows]
        self._stood += stood
        runs = Counter([gained - 1 for _, gained in stood])
        self.speculation.verified(drafts, runs)
        return sum(accepted * count for accepted, count in runs.items())

    def commits(self) -> tuple[Commit, ...]:
        """The commits of the rows verified since the last plan, for the next one."""
        return tuple(Commit(slot, tokens) for slot, tokens in self._stood)

    def planned(self) -> None:
        """Forget the commits, because the next plan has them or the ranks commit by themselves."""
        self._stood.clear()
