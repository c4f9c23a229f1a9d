"""Tests the routing policy and admission with made-up tables of workers."""

import dataclasses
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.relay import policy
from router.relay.admission import admit, missing
from router.relay.costs import Costs
from router.relay.fleet import WorkerState, capacity, fleet_of, pressure
from router.relay.policy import Held, Need, NoPlan, Plan
from wire.protocol import Load, RankInfo, Role, WorkerInfo


def worker(
    worker_id: str,
    role: Role,
    *,
    tp: int = 1,
    page_size: int = 16,
    layout: str = "l",
    weights: str = "w",
    pages: int = 100,
    slots: int = 10,
    max_model_len: int = 1000,
    unseen: int = 0,
    unseen_tokens: int = 0,
    unseen_work: int = 0,
    **load: Any,
) -> WorkerState:
    ranks = tuple(RankInfo(r, 1, "n", "cpu", "h", 1) for r in range(tp))
    info = WorkerInfo(
        worker_id, role, "h", 1, "n", 1, weights, layout, 256, page_size, pages, slots, max_model_len, ranks
    )  # fmt: skip
    idle = Load(0, 0, 0, pages, slots, 0, 0.0)
    return WorkerState(info, structs.replace(idle, **load), unseen, unseen_tokens, unseen_work)


NEED = Need(100, 100)
COSTS = Costs()


def choose(table: list[WorkerState], need: Need, *, split: bool, costs: Costs = COSTS) -> Plan | NoPlan:
    return policy.choose(fleet_of(table, costs), need, split=split)


@st.composite
def workers(draw: st.DrawFn) -> list[WorkerState]:
    out = []
    for i in range(draw(st.integers(0, 6))):
        pages, slots = draw(st.integers(1, 200)), draw(st.integers(1, 20))
        unseen = draw(st.integers(0, 5))
        out.append(
            worker(
                f"w{i}",
                draw(st.sampled_from(("prefill", "decode"))),
                tp=draw(st.sampled_from((1, 2))),
                weights=draw(st.sampled_from("ab")),
                pages=pages,
                slots=slots,
                max_model_len=draw(st.integers(1, 2000)),
                unseen=unseen,
                unseen_tokens=unseen * draw(st.integers(1, 500)),
                free_pages=draw(st.integers(0, pages)),
                free_slots=draw(st.integers(0, slots)),
                queued=draw(st.integers(0, 9)),
                queued_tokens=draw(st.integers(0, 3000)),
                running=draw(st.integers(0, 9)),
            )
        )
    return out


def fits_in(worker: WorkerState, need: Need) -> bool:
    return capacity(worker.info) >= need.prompt_tokens + need.max_tokens


needs = st.builds(Need, st.integers(1, 1500), st.integers(1, 500), st.integers(0, 2**32 - 1))


@given(workers(), needs, st.booleans())
def test_a_plan_is_sound(table: list[WorkerState], need: Need, split: bool) -> None:
    plan = choose(table, need, split=split)
    roles = {w.info.role for w in table}
    # Where one of the pools has no live worker, those of the other compute prompts and answers.
    split = split and roles == {"prefill", "decode"}
    fits = [w for w in table if fits_in(w, need)]
    goes_on = [w for w in fits if w.info.role == "decode"]
    starts = [w for w in table if w.info.role == "prefill" and capacity(w.info) > need.prompt_tokens]

    def together(a: WorkerInfo, b: WorkerInfo) -> bool:
        return (a.page_size, a.layout, a.weights_id) == (b.page_size, b.layout, b.weights_id)

    possible = bool(fits) if not split else any(together(p.info, d.info) for p in starts for d in goes_on)
    assert isinstance(plan, Plan) == possible
    if isinstance(plan, Plan):
        assert plan.decode in [w.info for w in fits]
        assert plan.prefill is None or split
        if plan.prefill is not None:
            assert plan.prefill in [w.info for w in starts]
            assert plan.decode in [w.info for w in goes_on]
            assert together(plan.prefill, plan.decode)


@given(workers(), needs, st.booleans(), st.randoms(use_true_random=False))
def test_the_table_s_order_does_not_matter(table: list[WorkerState], need: Need, split: bool, random: Random) -> None:
    first = choose(table, need, split=split)
    random.shuffle(table)
    second = choose(table, need, split=split)
    assert first == second or (isinstance(first, NoPlan) and first.reason == second.reason)


@given(workers(), needs)
def test_a_worker_with_room_goes_before_one_without(table: list[WorkerState], need: Need) -> None:
    alike = [dataclasses.replace(w, info=structs.replace(w.info, ranks=(), weights_id="w")) for w in table]
    plan = choose(alike, need, split=True)
    if isinstance(plan, Plan):
        state = {w.info.worker_id: w for w in alike}
        fits = [
            w for w in alike if w.info.role == "decode" and capacity(w.info) >= need.prompt_tokens + need.max_tokens
        ]
        if any(pressure(w, need.prompt_tokens) <= 1 for w in fits):
            assert pressure(state[plan.decode.worker_id], need.prompt_tokens) <= 1


def test_slots_and_pages_both_count() -> None:
    prefill = worker("p", "prefill")
    few_slots = worker("d0", "decode", free_slots=1, free_pages=90)
    few_pages = worker("d1", "decode", free_slots=9, free_pages=8)
    balanced = worker("d2", "decode", free_slots=5, free_pages=50)
    assert choose([prefill, few_slots, few_pages, balanced], NEED, split=True) == Plan(prefill.info, balanced.info)


def test_own_submissions_count_before_the_worker_reports_them() -> None:
    table = [
        worker("p0", "prefill", unseen=1, unseen_tokens=500, unseen_work=500),
        worker("p1", "prefill", queued_tokens=400),
    ]
    decodes = [worker("d0", "decode", unseen=2, unseen_tokens=20), worker("d1", "decode", running=1, free_slots=9)]
    assert choose(table + decodes, NEED, split=True) == Plan(table[1].info, decodes[1].info)


def test_snapshots_of_other_weights_are_reported_but_not_used() -> None:
    table = [worker("p", "prefill"), worker("d", "decode"), worker("old", "decode", weights="v", running=5)]
    held = {"old": Held(80, True), "p": Held(30, True), "gone": Held(99, True)}
    plan = choose(table, dataclasses.replace(NEED, held=held), split=True)
    assert isinstance(plan, Plan)
    assert (plan.decode.worker_id, plan.source, plan.foreign_tokens) == ("d", None, 80)
    plan = choose(table[:2], dataclasses.replace(NEED, held=held), split=True)
    assert isinstance(plan, Plan)
    assert plan.foreign_tokens == 0


def test_workers_with_equal_scores_share_requests_by_salt() -> None:
    table = [worker(f"p{i}", "prefill") for i in range(4)] + [worker(f"d{i}", "decode") for i in range(4)]
    plans = [choose(table, dataclasses.replace(NEED, salt=s), split=True) for s in range(200)]
    assert {p.prefill.worker_id for p in plans if isinstance(p, Plan) and p.prefill} == {"p0", "p1", "p2", "p3"}
    assert {p.decode.worker_id for p in plans if isinstance(p, Plan)} == {"d0", "d1", "d2", "d3"}


@pytest.mark.parametrize(
    ("table", "reason", "words"),
    [
        ([], "no_worker", "no worker is live"),
        ([worker("p", "prefill", page_size=32), worker("d", "decode")], "mismatch", "page_size 32 and 16"),
        ([worker("p", "prefill", layout="x"), worker("d", "decode")], "mismatch", "layout 'x' and 'l'"),
        ([worker("p", "prefill", weights="v"), worker("d", "decode")], "mismatch", "weights_id 'v' and 'w'"),
        ([worker("p", "prefill"), worker("d", "decode", max_model_len=150)], "too_long", "150 tokens"),
        ([worker("p", "prefill", pages=5), worker("d", "decode")], "too_long", "80 tokens"),
    ],
)
def test_refusals_say_why(table: list[WorkerState], reason: str, words: str) -> None:
    plan = choose(table, NEED, split=True)
    assert isinstance(plan, NoPlan)
    assert plan.reason == reason
    assert words in plan.message


def test_without_a_prefill_pool_the_worker_with_least_to_compute_is_chosen() -> None:
    table = [worker("d0", "decode", queued_tokens=200), worker("d1", "decode", queued_tokens=100)]
    assert choose(table, NEED, split=False) == Plan(None, table[1].info)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))
def test_admission_is_a_bound(in_flight: int, asked: int, max_queue: int) -> None:
    refusal = admit(in_flight, asked, max_queue)
    assert (refusal is None) == (in_flight + asked <= max_queue)
    assert refusal is None or refusal.status == 429


def test_the_pool_without_a_worker_is_named() -> None:
    assert missing({"decode": 1, "prefill": 0}, split=False) is None
    words = missing({"decode": 1, "prefill": 0}, split=True)
    assert words is not None
    assert ("prefill" in words, "decode" in words) == (True, False)


LONG = {"pages": 10_000, "slots": 64, "max_model_len": 130_000}


def plan_of(table: list[WorkerState], need: Need, **costs: float) -> Plan:
    plan = choose(table, need, split=True, costs=dataclasses.replace(Costs(), **costs))
    assert isinstance(plan, Plan)
    return plan


def test_a_prompt_goes_to_the_worker_that_keeps_most_of_it_unless_that_is_busy() -> None:
    need = Need(20_000, 100, held={"p0": Held(18_000, True)})
    decode = worker("d", "decode", **LONG)
    for ahead, expected in ((1_000, "p0"), (40_000, "p1")):
        table = [worker("p0", "prefill", **LONG, queued_tokens=ahead), worker("p1", "prefill", **LONG), decode]
        plan = plan_of(table, need, pull_s=10.0)  # a pull would cost more than all the prompt
        assert plan.prefill is not None
        assert plan.prefill.worker_id == expected
        assert plan.source is None
        assert plan.work == (2_000 if expected == "p0" else 20_000)


def test_an_idle_worker_pulls_what_a_busy_one_keeps() -> None:
    need = Need(20_000, 100, held={"p0": Held(18_000, True)})
    table = [worker("p0", "prefill", **LONG, queued_tokens=40_000), worker("p1", "prefill", **LONG)]
    plan = plan_of([*table, worker("d", "decode", **LONG)], need)
    assert plan == Plan(table[1].info, worker("d", "decode", **LONG).info, source=table[0].info, kept_tokens=18_000)


def test_a_snapshot_on_a_device_is_pulled_rather_than_one_below() -> None:
    def chosen(held: dict[str, Held], **costs: float) -> str | None:
        table = [worker(name, "prefill", **LONG, queued_tokens=ahead) for name, ahead in (("p0", 40_000), ("p1", 0))]
        decodes = [worker(name, "decode", **LONG) for name in ("d0", "d1")]
        plan = plan_of([*table, *decodes], Need(20_000, 100, held=held), itl_s=0.001, **costs)
        return plan.source.worker_id if plan.source else None

    below, device = Held(18_000, False), Held(18_000, True)
    assert chosen({"p0": below}) == "p0"
    assert chosen({"p0": below, "d1": device}) == "d1"
    assert chosen({"p0": Held(18_001, False), "d1": device}) == "p0"
    # Reading and moving it takes longer than computing it does, at 20 us a token.
    assert chosen({"p0": below}, latent_s=1.5e-5) is None
    assert chosen({"p0": device}, latent_s=1.5e-5) == "p0"


@pytest.mark.parametrize(("suffix", "running", "alone"), [(100, 0, True), (100, 20, True), (8_000, 60, False)])
def test_a_short_suffix_is_computed_where_the_prompt_is_kept(suffix: int, running: int, alone: bool) -> None:
    need = Need(20_000, 100, held={"d": Held(20_000 - suffix, True)})
    decode = worker("d", "decode", **LONG, running=running, free_slots=64 - running)
    plan = plan_of([worker("p", "prefill", **LONG), decode], need, itl_s=0.02)
    assert (plan.prefill is None) == alone


def test_a_cold_prompt_goes_to_a_decode_worker_only_where_much_waits_at_the_prefill_workers() -> None:
    decode = worker("d", "decode", **LONG)
    for queued, alone in ((0, False), (1_000, False), (100_000, True)):
        plan = plan_of([worker("p", "prefill", **LONG, queued_tokens=queued), decode], Need(500, 100))
        assert (plan.prefill is None) == alone


def test_decode_workers_are_kept_within_their_inter_token_target() -> None:
    """d0 keeps the whole prompt, but its measured steps exceed the target."""
    need = Need(20_000, 100, held={"d0": Held(19_000, True)})
    for measured, expected in ((0.03, "d0"), (0.06, "d1")):
        slow = worker("d0", "decode", **LONG, running=8, free_slots=56, decode_s=measured)
        other = worker("d1", "decode", **LONG, running=8, free_slots=56, decode_s=0.0295)
        plan = plan_of([worker("p", "prefill", **LONG), slow, other], need, itl_s=0.05, latent_s=1e-5)
        assert plan.decode.worker_id == expected


@pytest.mark.parametrize("scarce", [{"free_slots": 2}, {"free_pages": 400}])
def test_scarce_places_cost_more_than_a_transfer(scarce: dict[str, int]) -> None:
    need = Need(2_000, 100, held={"d0": Held(1_900, True)})
    table = [worker("d0", "decode", **{**LONG, "free_slots": 40, "running": 20, **scarce})]
    table += [worker("p", "prefill", **LONG), worker("d1", "decode", **LONG, running=20, free_slots=44)]
    assert plan_of(table, need).decode.worker_id == "d1"


def test_a_worker_s_measurements_replace_the_cost_model() -> None:
    table = [worker("p0", "prefill", **LONG, token_s=1e-3), worker("p1", "prefill", **LONG, queued_tokens=1_000)]
    plan = plan_of([*table, worker("d", "decode", **LONG)], Need(5_000, 100))
    assert plan.prefill == table[1].info
    assert plan.first_token_s == pytest.approx(2e-5 * (1_000 + 5_000 * (1 + 5_000 / 200_000)))


def test_decode_workers_compute_prompts_while_no_prefill_worker_lives() -> None:
    assert choose([worker("d", "decode")], NEED, split=True) == Plan(None, worker("d", "decode").info)


def test_a_prefill_worker_answers_while_no_decode_worker_lives() -> None:
    prefill = worker("p", "prefill")
    assert choose([prefill], NEED, split=True) == Plan(None, prefill.info)
    assert choose([prefill], Need(100, 2000), split=True) == NoPlan(
        "too_long",
        "the prompt's 100 tokens and an answer of 2000 exceed the 1000 tokens the workers have room for",
    )


def test_a_prefill_worker_answers_where_the_decode_pool_starves() -> None:
    idle, full = worker("p", "prefill"), worker("d", "decode", running=10, free_slots=0)
    assert choose([idle, full], NEED, split=True) == Plan(None, idle.info)
    # Not one that has prompts to compute for longer than a place at the decode worker takes.
    busy = worker("p", "prefill", queued=10, queued_tokens=1_000_000)
    assert choose([busy, full], NEED, split=True) == Plan(None, full.info)
    roomy = worker("d", "decode", running=5, free_slots=5)
    assert choose([idle, roomy], NEED, split=True) == Plan(idle.info, roomy.info)


def test_no_prefill_worker_answers_for_a_decode_worker_that_is_slow_without_company() -> None:
    """Its steps may be long because a burst has just ended, or because the machine is slow."""
    prefill = worker("p", "prefill", slots=100)
    for load in ({"decode_s": 0.2, "decode_rows": 60.0}, {"decode_s": 0.2, "decode_rows": 1.0, "running": 1}):
        decode = worker("d", "decode", slots=100, **load)
        assert choose([prefill, decode], NEED, split=True) == Plan(prefill.info, decode.info)


@pytest.mark.parametrize(
    ("over_s", "begins", "goes_on"), [(-0.002, False, False), (0.0002, False, True), (0.01, True, True)]
)
def test_a_prefill_worker_changes_its_role_late_and_changes_back_late(
    over_s: float, begins: bool, goes_on: bool
) -> None:
    """The excess of the decode worker's steps over their target, and whether a prefill worker answers."""
    late = worker("d", "decode", slots=100, running=50, free_slots=50, decode_s=COSTS.itl_s - 5e-5 * 1 + over_s)
    for answering, answers in ((0, begins), (3, goes_on)):
        prefill = worker("p", "prefill", slots=100, running=answering, free_slots=100 - answering, answering=answering)
        plan = choose([prefill, late], NEED, split=True)
        assert plan == (Plan(None, prefill.info) if answers else Plan(prefill.info, late.info))


def test_prompts_go_to_the_prefill_worker_that_does_not_answer() -> None:
    answers = worker("p0", "prefill", running=5, free_slots=5, answering=5, decode_s=0.05)
    table = [answers, worker("p1", "prefill", running=5, free_slots=5), decode := worker("d", "decode")]
    for salt in range(8):
        assert choose(table, dataclasses.replace(NEED, salt=salt), split=True) == Plan(table[1].info, decode.info)


def test_no_hand_off_between_workers_that_can_t_reach_each_other() -> None:
    p0, p1 = worker("p0", "prefill"), worker("p1", "prefill", queued=9, queued_tokens=9000)
    cut_off = worker("d0", "decode", unreachable=("p0", "p1"))
    half = worker("d1", "decode", unreachable=("p1",), running=8, free_slots=1)
    whole = worker("d1", "decode", running=8, free_slots=1)

    def chosen(*table: WorkerState) -> tuple[str | None, str]:
        plan = choose(list(table), NEED, split=True)
        assert isinstance(plan, Plan)
        return plan.prefill.worker_id if plan.prefill else None, plan.decode.worker_id

    assert chosen(p0, worker("d0", "decode"), whole) == ("p0", "d0")
    assert chosen(p0, cut_off) == (None, "d0")
    assert chosen(p0, cut_off, whole)[1] != "d0" or chosen(p0, cut_off, whole)[0] is None
    for salt in range(20):
        plan = choose([p0, p1, cut_off, half], dataclasses.replace(NEED, salt=salt), split=True)
        assert isinstance(plan, Plan)
        assert plan.prefill is None or (plan.prefill.worker_id, plan.decode.worker_id) == ("p0", "d1")
    assert isinstance(choose([p0, cut_off], Need(2000, 100), split=True), NoPlan)
