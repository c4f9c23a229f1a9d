"""Tests that messages between leader and ranks survive encoding."""

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
    (link,) = plan.links[0].of(1, 2)
    assert link.port == 2


def test_a_rank_links_to_the_ranks_that_hold_its_heads() -> None:
    def ports(senders: int, ranks: int) -> list[list[int]]:
        all_of = LinkAll("w", tuple(("h", n) for n in range(senders)))
        return [[link.port for link in all_of.of(rank, ranks)] for rank in range(ranks)]

    assert ports(4, 2) == [[0, 1], [2, 3]]
    assert ports(2, 4) == [[0], [0], [1], [1]]
    assert ports(4, 1) == [[0, 1, 2, 3]]
    assert ports(2, 2) == [[0], [1]]
