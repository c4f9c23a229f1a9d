"""What leader and ranks say to each other survives its frame."""

from wire.protocol import SamplingParams, TokenLogprob
from workers.schedule.step import RANKS, Admit, Export, Install, LinkAll, Row, StepPlan, StepResult

SAMPLING = SamplingParams(max_tokens=3, seed=2**62, logit_bias=((5, -1.5),), stop_token_ids=(1, 2), logprobs=0)
LOGPROB = TokenLogprob(5, -0.25, (5, 6), (-0.25, -1.5))


def test_a_step_plan_survives() -> None:
    plan = StepPlan(
        step=3,
        links=(LinkAll("w", (("h", 1), ("h", 2))),),
        installs=(Install("a", 0, (1, 2)),),
        admits=(Admit(0, SAMPLING, (1,), 1),),
        rows=(Row(0, 5, (1,), 0, (3,), True, (4,)),),
        exports=(Export("a", "w", 0, (1,), 0, 5, True),),
    )
    result = StepResult(3, ((1,),), ((LOGPROB,),), ((LOGPROB,),), 0.5)
    for message in (plan, result):
        frame = memoryview(RANKS.encode(message)).tobytes()
        at = 0

        def take(count: int, frame: bytes = frame) -> bytes:
            nonlocal at
            at += count
            return frame[at - count : at]

        assert RANKS.read_blocking(take) == message
    assert plan.links[0].of(1).port == 2
