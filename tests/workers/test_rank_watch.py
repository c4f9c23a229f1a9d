"""When ranks are taken for hung: by how long their steps take, and by what the ranks do meanwhile."""

from dataclasses import dataclass, field

import pytest

from workers.leader.rank_watch import Pace, RankWatch
from workers.schedule.step import Row, StepPlan


def step(tokens: int, sample: bool = True) -> StepPlan:
    return StepPlan(0, rows=(Row(0, 0, (1,) * tokens, 0, (), sample),))


@dataclass
class Machine:
    """Ranks of a group, and a clock that a leader looks at every 0.2 s."""

    cuda: bool = False
    now: float = 0.0
    cpu: dict[int, float] = field(default_factory=lambda: {0: 0.0, 1: 0.0})
    stopped: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.watch = RankWatch(2, self.cuda, self.cpu.__getitem__)

    def run(self, seconds: float) -> tuple[float, str] | None:
        """When, and why, the ranks were taken for hung; None if they were not."""
        begun = self.now
        while self.now < begun + seconds:
            self.now += 0.2
            for rank in self.cpu.keys() - self.stopped:
                self.cpu[rank] += 0.02
            if (reason := self.watch.hung(self.now)) is not None:
                return self.now - begun, reason
        return None

    def take(self, seconds: float, tokens: int, sample: bool = True) -> None:
        self.watch.sent(step(tokens, sample), self.now)
        assert self.run(seconds) is None
        self.watch.done(self.now)


def test_a_stopped_rank_is_seen_within_two_seconds() -> None:
    machine = Machine()
    machine.take(0.2, 8)
    machine.stopped = {1}
    machine.watch.sent(step(8), machine.now)
    after, reason = machine.run(10) or (99.0, "")
    assert after <= 2.0
    assert "rank 1 did nothing meanwhile" in reason


def test_a_rank_that_computes_is_late_and_not_hung() -> None:
    machine = Machine()
    machine.watch.sent(step(8), machine.now)
    assert machine.run(50) is None


def test_a_rank_that_is_stopped_between_steps_is_seen_too() -> None:
    machine = Machine()
    machine.watch.asked(machine.now)
    machine.watch.answered(0)
    machine.stopped = {1}
    after, reason = machine.run(10) or (99.0, "")
    assert after <= 2.0
    assert reason.startswith("rank 1 gave no sign of life")


def test_ranks_that_answer_are_left_alone() -> None:
    machine = Machine(stopped={0, 1})  # they have nothing to do
    for _ in range(10):
        machine.watch.asked(machine.now)
        machine.watch.answered(0)
        machine.watch.answered(1)
        assert machine.watch.idle
        assert machine.run(1) is None


def test_on_a_gpu_a_step_has_as_long_as_its_like_took() -> None:
    machine = Machine(cuda=True)
    machine.take(40, 8)  # the first of its size
    for _ in range(200):
        machine.take(0.2, 8)
    machine.watch.sent(step(8), machine.now)
    after, _ = machine.run(99) or (99.0, "")
    assert after < 4.0
    long = Machine(cuda=True)
    for _ in range(3):
        long.take(3, 8000)
    long.watch.sent(step(8000), long.now)
    assert long.run(20) is None


def test_on_a_gpu_a_step_whose_kernel_is_compiled_has_long() -> None:
    machine = Machine(cuda=True)
    machine.take(0.2, 8)
    machine.watch.sent(step(8), machine.now)
    machine.watch.compiles(machine.now)
    assert machine.run(30) is None
    machine.watch.done(machine.now)
    machine.watch.sent(step(8), machine.now)
    assert (machine.run(99) or (99.0, ""))[0] < 5.0  # what was compiled tells nothing of what steps take


def test_on_a_gpu_steps_that_sample_nothing_count_with_the_one_that_waits_for_them() -> None:
    """Their results come before the device has computed them."""
    machine = Machine(cuda=True)
    for _ in range(2):
        for _ in range(7):
            machine.take(0.2, 1024, sample=False)
        machine.take(9, 1024)
    for _ in range(7):
        machine.take(0.2, 1024, sample=False)
    machine.watch.sent(step(1024), machine.now)
    assert machine.run(40) is None


@pytest.mark.parametrize("cuda", [False, True])
def test_a_slow_machine_s_steps_are_given_longer(cuda: bool) -> None:
    pace = Pace(cuda)
    pace.took(1024, 4.0)
    assert pace.allowed(1024) > 8.0
    assert pace.allowed(2048) > 16.0
    pace.took(1024, 0.1)
    assert pace.allowed(1024) > 8.0  # it fades step by step
