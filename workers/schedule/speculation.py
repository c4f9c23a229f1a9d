"""Decides how many tokens a step drafts: the number with the lowest time per token, by measured steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# The weight of a new measurement in an average; the first few weigh more.
_WEIGHT = 0.05
# One step in so many tries a neighbour of the number of drafts that is best so far.
_TRY_EVERY = 32
# The number of steps of a kind to measure before its average counts.
_BELIEVED = 3
# More drafts are not tried if fewer are already worse than the best by this factor.
_HOPELESS = 0.9


@dataclass(slots=True)
class _Average:
    """An average in which new values weigh more. count: the values so far."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float, count: int = 1) -> None:
        """Add so many values at once, whose mean is `value`."""
        self.count += count
        self.value += max(1 - (1 - _WEIGHT) ** count, count / self.count) * (value - self.value)


@dataclass(frozen=True, slots=True)
class Drafted:
    """Totals by place in the run of drafts: drafts verified, and how many of them were accepted."""

    offered: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(slots=True)
class Speculation:
    """Decides the number of drafts per sequence. most: the largest number; 0 for none.

    adapts: whether to use fewer if they do not pay.

    Steps are told apart by how many sequences decode in them, in powers of two: drafts pay where a step is bound by the
    weights it reads, and cost where it is bound by arithmetic.
    """

    most: int
    adapts: bool = True
    steps: int = 0
    _offered: list[int] = field(default_factory=list)
    _accepted: list[int] = field(default_factory=list)
    _stands: list[_Average] = field(default_factory=list)
    _seconds: dict[tuple[int, int], _Average] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._offered = [0] * self.most
        self._accepted = [0] * self.most
        self._stands = [_Average() for _ in range(self.most)]

    @property
    def totals(self) -> Drafted:
        """The totals since the start."""
        return Drafted(tuple(self._offered), tuple(self._accepted))

    def drafts(self, rows: int, room: int) -> int:
        """The number of drafts per sequence in a step with `rows` decoding sequences. room: tokens left in the step."""
        most = min(self.most, room // rows if rows else 0)
        if not most or not self.adapts:
            return most
        self.steps += 1
        kind, best, best_rate = rows.bit_length(), 0, 0.0
        for n in range(most + 1):
            seconds = self._seconds.get((kind, n))
            if seconds is None or seconds.count < _BELIEVED:
                return n
            rate = self._gained(n) / seconds.value
            if rate > best_rate:
                best, best_rate = n, rate
            elif rate < _HOPELESS * best_rate:
                break
        if self.steps % _TRY_EVERY == 0:
            near = [n for n in (best - 1, best + 1) if 0 <= n <= most]
            return near[self.steps // _TRY_EVERY % len(near)]
        return best

    def verified(self, drafts: int, runs: Mapping[int, int]) -> None:
        """Record runs of so many drafts. runs: how many of them had 0, 1, … drafts accepted."""
        reached = sum(runs.values())
        for n in range(drafts):
            if not reached:
                return
            accepted = reached - runs.get(n, 0)
            self._offered[n] += reached
            self._accepted[n] += accepted
            self._stands[n].add(accepted / reached, reached)
            reached = accepted

    def took(self, drafts: Sequence[int], seconds: float) -> None:
        """Record the seconds of a step with decoding sequences only. drafts: of each of them."""
        if self.adapts and self.most and drafts:
            # Sequences near their end have fewer drafts, so the step counts as what most of them have.
            usual = max(set(drafts), key=list(drafts).count)
            self._seconds.setdefault((len(drafts).bit_length(), usual), _Average()).add(seconds)

    def _gained(self, drafts: int) -> float:
        """The mean tokens that a sequence gains in a step: one, and each draft if all drafts before it are accepted."""
        gained = chance = 1.0
        for average in self._stands[:drafts]:
            chance *= average.value
            gained += chance
        return gained
