"""The sequences that decode on from step to step while steps are planned ahead. Pure.

All rows of such a step change alike: each gains a token, and with drafts some more. What else can happen to a sequence
is known beforehand to happen in no step before a certain one: it needs a page, its state is to be kept, its last token
comes. So each sequence is looked at in that step, and planning a step costs what changes in it.
"""

from dataclasses import dataclass

from workers.schedule.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Changes:
    """What changes in a batch before its next step.

    ended: the slots of those that leave it. last: sequences whose last token the present step brings. short: those that
    need more pages, and how many. stay: those that were looked at and have nothing of the kind, or need pages.
    """

    ended: tuple[int, ...]
    last: tuple[Sequence, ...]
    short: tuple[tuple[Sequence, int], ...]
    stay: tuple[tuple[Sequence, int], ...]


class Batch:
    """The rows of one step after another, in the ranks' order: `seqs`, and the slot of each in `slots`.

    drafts: of each of them. context: tokens before those that the present step computes. gone: sequences that lost
    their places although ranks still compute their rows.
    """

    def __init__(self, drafts: int, page_size: int) -> None:
        self.drafts = drafts
        self.seqs: list[Sequence] = []
        self.slots: list[int] = []
        self.context = 0
        self.gone: set[Sequence] = set()
        self._members: set[Sequence] = set()
        self._planned = -1  # the latest step after which one was planned
        self._last: tuple[Sequence, ...] = ()  # whose last token that step brings
        self._size = page_size
        # A step brings a sequence so many tokens at most, and the one after it reads what both brought.
        self._most = 1 + drafts
        self._far = 2 * self._most
        self._due: dict[int, list[tuple[Sequence, int]]] = {}  # whom to look at, and its epoch, by step

    def __len__(self) -> int:
        return len(self.seqs)

    @property
    def present(self) -> int:
        """The number of its sequences that have not been preempted."""
        return len(self.seqs) - len(self.gone)

    def changes(self, step: int) -> Changes | None:
        """The changes before the step after `step`, the present one; None if its results must be known first."""
        ended: list[int] = []
        if self.gone:
            ended += (slot for seq, slot in zip(self.seqs, self.slots, strict=True) if seq in self.gone)
        last: list[Sequence] = []
        short: list[tuple[Sequence, int]] = []
        stay: list[tuple[Sequence, int]] = []
        for seq, epoch in self._due.get(step, ()):
            if seq.epoch != epoch:
                continue
            known, pages = len(seq.tokens), len(seq.pages)
            if known >= seq.keep_at:
                return None
            if known > seq.most - self._far:
                # How far drafts take a sequence is not known: near its end it waits for the results.
                if self.drafts:
                    return None
                last.append(seq)
                ended.append(seq.slot)
                continue
            missing = self.missing(seq)
            if missing > 0:
                short.append((seq, missing))
                pages += missing
            stay.append((seq, pages))
        return Changes(tuple(ended), tuple(last), tuple(short), tuple(stay))

    def missing(self, seq: Sequence) -> int:
        """Pages that a sequence lacks for the present step and the next one; 0 or less if none."""
        return -(-(len(seq.tokens) - 1 + self._far) // self._size) - len(seq.pages)

    def planned(self, step: int, changes: Changes) -> None:
        """Record that the step after `step` is planned with these changes."""
        self._planned, self._last = step, changes.last
        self._due.pop(step, None)
        for seq, pages in changes.stay:
            self._look(seq, pages, step)

    def ending(self, step: int) -> list[Sequence]:
        """The sequences whose last token the present step may give."""
        if step == self._planned:
            return [seq for seq in self._last if seq not in self.gone]
        near = [seq for seq, epoch in self._due.get(step, ()) if seq.epoch == epoch]
        return [seq for seq in near if seq.most - len(seq.tokens) <= self._most]

    def gained(self, count: int) -> None:
        """Record the number of tokens that the present step gave all its sequences together."""
        self.context += count

    def lose(self, seq: Sequence) -> None:
        """Record that a sequence is preempted; does nothing if it is not in the batch."""
        if seq in self._members:
            self.gone.add(seq)

    def leave(self, over: set[int], slots: set[int]) -> None:
        """Remove sequences, by their indices and their slots."""
        rows = [
            (seq, slot)
            for at, (seq, slot) in enumerate(zip(self.seqs, self.slots, strict=True))
            if at not in over and slot not in slots
        ]
        self.seqs = [seq for seq, _ in rows]
        self.slots = [slot for _, slot in rows]
        self._members = set(self.seqs)
        self.gone &= self._members
        self.context = sum([len(seq.tokens) for seq in self.seqs]) - len(rows)

    def join(self, seq: Sequence, slot: int, step: int, *, here: bool) -> None:
        """Add a sequence in `step`, the present one. here: whether it still has its slot and pages."""
        self.seqs.append(seq)
        self.slots.append(slot)
        self._members.add(seq)
        self.context += len(seq.tokens) - 1
        if here:
            self._look(seq, len(seq.pages), step)
        else:
            self.gone.add(seq)

    def _look(self, seq: Sequence, pages: int, step: int) -> None:
        """Note the first step from `step` on in which a sequence may change. pages: the number it has then."""
        known = len(seq.tokens)
        tokens = min(seq.most - self._far + 1, seq.keep_at, pages * self._size - self._far + 2) - known
        self._due.setdefault(step + max(0, -(-tokens // self._most)), []).append((seq, seq.epoch))
