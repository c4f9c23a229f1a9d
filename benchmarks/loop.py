"""What a worker's step costs beside the ranks' computing, from ranks that compute nothing. `python -m benchmarks.loop`.

Processor time by part of a decode step at several numbers of running sequences: planning it, the frames to a rank and
back, taking its results, and what routers are sent. `gap` is what the device waits for between a result and the next
step: taking the result, planning, and the frame; routers are sent theirs while the ranks compute.
"""

import argparse
import time
from array import array
from collections import defaultdict

from wire.codec import CLUSTER
from wire.protocol import SamplingParams, StepOutputs
from workers.schedule.limits import Limits
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
from workers.schedule.step import RANKS, StepPlan, StepResult

_LENGTH = 2048
_STEPS = 400


def scheduler(sequences: int, drafts: int) -> Scheduler:
    """Make a scheduler in which so many sequences decode."""
    limits = Limits(
        pages=sequences * 80, page_size=64, slots=sequences, max_model_len=4096, window=16,
        max_step_tokens=max(1024, 8 * sequences), hold_s=60.0, drafts=drafts, adapts=False,
    )  # fmt: skip
    made = Scheduler(limits)
    for n in range(sequences):
        made.add(
            Sequence(
                request_id=f"request-{n}", tokens=array("i", range(n, n + _LENGTH)), prompt_tokens=_LENGTH,
                sampling=SamplingParams(max_tokens=2000, seed=n, stop_token_ids=(1, 2)), priority=0, order=0,
                handoff=False, source=None, arrived=0.0,
            )
        )  # fmt: skip
    while any(s.pending > 1 for s in made.sequences.values()):
        flight = made.plan(0.0)
        made.update(flight, _result(flight.plan), 0.0)
    return made


def _result(plan: StepPlan) -> StepResult:
    tokens = tuple((7,) * (1 + r.drafts) for r in plan.rows if r.sample)
    return StepResult(plan.step, tokens, ((),) * len(tokens), (), 0.001)


def parts(made: Scheduler, steps: int) -> dict[str, float]:
    """Measure the CPU microseconds of a step, by part."""
    spent: dict[str, float] = defaultdict(float)
    last = time.process_time()

    def lap(part: str) -> None:
        nonlocal last
        now = time.process_time()
        spent[part] += now - last
        last = now

    for step in range(steps):
        last = time.process_time()
        flight = made.plan(0.001 * step)
        lap("plan")
        frame = RANKS.encode(flight.plan)
        lap("frame")
        reply = RANKS.encode(_result(flight.plan))
        last = time.process_time()
        result = RANKS.decode(reply[4], reply[5:])
        lap("frame")
        assert isinstance(result, StepResult)
        outputs = made.update(flight, result, 0.001 * step)
        lap("take")
        CLUSTER.encode(StepOutputs(step, 1, made.load, tuple(outputs), ()))
        lap("publish")
        assert frame
    return {part: seconds / steps * 1e6 for part, seconds in spent.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=_STEPS)
    asked = parser.parse_args()
    print("| sequences | drafts | plan, us | frames, us | take, us | gap, us | publish, us |")
    print("|---" * 7 + "|")
    for sequences in (1, 16, 64, 256):
        for drafts in (0, 3):
            spent = parts(scheduler(sequences, drafts), asked.steps)
            gap = spent["plan"] + spent["frame"] + spent["take"]
            cells = (spent["plan"], spent["frame"], spent["take"], gap, spent["publish"])
            print(f"| {sequences} | {drafts} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
