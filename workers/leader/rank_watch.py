"""Detects ranks that hang while their processes and connections exist. Pure: readings are passed in.

The time allowed for a step follows from the times of similar steps. A rank without a GPU that uses the CPU is slow, not
hung: on a busy machine a step takes many times longer. On a GPU only the time counts.
"""

from collections import deque
from collections.abc import Callable, Sequence

from wire.liveness import SILENT_S
from workers.schedule.step import StepPlan

# To this is added so many times the longest recent time of a similar step.
_FLOOR_S = SILENT_S - 0.1
_TIMES_CPU, _TIMES_CUDA = 2.0, 8.0
# On a GPU, the time allowed for a step without a similar one, or during which a kernel is compiled.
_FIRST_S = 60.0
_FADES = 0.95
# A rank whose CPU time has not changed for so many seconds does nothing.
_STILL_S = 1.0
_LOOK_AFTER_S = 0.3


class Pace:
    """The recent times of steps. Steps are similar if their numbers of tokens have the same power of two."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._slowest: dict[int, float] = {}  # by the bit length of the number of tokens

    def allowed(self, tokens: int) -> float:
        """Seconds after which a step counts as hung."""
        size = tokens.bit_length()
        known = self._slowest.get(size)
        if known is None and self._cuda:
            return _FIRST_S
        if known is None:
            known = max((s * 2.0 ** (size - other) for other, s in self._slowest.items()), default=0.0)
        return _FLOOR_S + (_TIMES_CUDA if self._cuda else _TIMES_CPU) * known

    def took(self, tokens: int, seconds: float) -> None:
        """Record that a step of so many tokens took so many seconds."""
        size = tokens.bit_length()
        self._slowest[size] = max(seconds, _FADES * self._slowest.get(size, 0.0))


class RankWatch:
    """The watch over one worker's ranks. Times are seconds of the leader's `AwakeClock`.

    cpu_s: returns the CPU time that a rank has used; None if unknown.
    """

    def __init__(self, ranks: int, cuda: bool, cpu_s: Callable[[int], float | None]) -> None:
        self._pace = Pace(cuda)
        self._cuda = cuda
        self._cpu_s = cpu_s
        self._steps: deque[tuple[int, bool]] = deque()  # running steps: their tokens, and whether they sample
        self._began = 0.0  # when the oldest of them began
        self._latest = 0  # tokens of the step that was sent last
        # Steps since the last result that waited for the device. A step that samples nothing returns its result before
        # the device has computed it.
        self._span, self._span_began = 0, 0.0
        self._compiles = False
        self._ranks = range(ranks)
        self._asked = 0.0
        self._silent: set[int] = set()  # ranks that have not answered the last ping
        self._used: dict[int, tuple[float, float]] = {}  # by rank: its CPU time, and when that last changed

    @property
    def idle(self) -> bool:
        """Whether nothing is expected of the ranks."""
        return not self._steps and not self._silent

    def asked(self, now: float) -> None:
        """Note that every rank was asked for a sign of life."""
        self._asked = now
        self._silent = set(self._ranks)

    def answered(self, rank: int) -> None:
        """Note that a rank gave a sign of life."""
        self._silent.discard(rank)

    def sent(self, plan: StepPlan, now: float) -> None:
        """Note that a step was sent to the ranks."""
        if not self._steps:
            self._began = now
        if not self._span:
            self._span_began = now
        tokens = sum(row.count for row in plan.rows)
        samples = any(row.sample for row in plan.rows)
        if plan.ahead is not None:  # the rows of the step before go on, which all sample
            tokens, samples = tokens + self._latest, True
        self._latest = tokens
        self._span += tokens
        self._steps.append((tokens, samples))

    def done(self, now: float) -> None:
        """Note that the oldest step's result has arrived."""
        tokens, samples = self._steps.popleft()
        if samples or not self._cuda:
            behind = sum(tokens for tokens, _ in self._steps)
            if not self._compiles:
                self._pace.took(self._span - behind if self._cuda else tokens, now - self._span_began)
            self._span, self._span_began = behind, now
        self._began, self._compiles = now, False

    def compiles(self, now: float) -> None:
        """Note that the running step waits for a kernel's compilation."""
        self._began, self._compiles = now, True

    def hung(self, now: float) -> str | None:
        """The reason why the ranks count as hung; None while they do not."""
        late = self._late(now)
        if self._cuda:
            return late
        if self.idle or now - (self._began if self._steps else self._asked) < _LOOK_AFTER_S:
            self._used.clear()
            return None
        still = self._still(now)
        return f"{late}; {_named(still)} did nothing meanwhile" if late and still else None

    def _late(self, now: float) -> str | None:
        if self._steps:
            allowed = _FIRST_S if self._compiles else self._pace.allowed(self._span)
            if now - self._began > allowed:
                return f"a step of {self._span} tokens has no result after {allowed:.1f} s"
        if self._silent and now - self._asked > _FLOOR_S and not self._steps:
            return f"{_named(sorted(self._silent))} gave no sign of life for {_FLOOR_S:.1f} s"
        return None

    def _still(self, now: float) -> list[int]:
        """The ranks that have used no CPU time for a while."""
        still = []
        for rank in self._ranks:
            used = self._cpu_s(rank)
            before = self._used.get(rank)
            if before is None or used is None or used > before[0]:
                self._used[rank] = (used or 0.0, now)
            elif now - before[1] >= _STILL_S:
                still.append(rank)
        return still


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
