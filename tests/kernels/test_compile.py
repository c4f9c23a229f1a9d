"""Kernels compile for every kind of card and fit its memory, with a GPU or without.

All of them for sm_90, where each must also wait for its predecessor; for the other cards those whose tiles fill a
block's shared memory. `python -m tests.kernels.compile --matrix` compiles every kernel for every card.
"""

from functools import cache

import pytest

from tests.kernels.compile import CARDS, Compiled, compile_all, modules

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]
HUNGRY = [f"tests.kernels.test_triton_{name}" for name in ("mla", "mla_prefill", "linear_fp32")]
LINEAR_ATTENTION, GATE, VARIANTS = (
    "tests.kernels.test_triton_lightning",
    "tests.kernels.test_triton_moe_gate",
    "tests.kernels.variants",
)


@cache
def compiled(card: int) -> dict[str, list[Compiled] | str]:
    """All compiled kernels of a card. One process compiles them, because importing Triton takes seconds."""
    others = {89: [*HUNGRY, LINEAR_ATTENTION], 90: [*modules(), VARIANTS]}
    return compile_all(others.get(card, HUNGRY), card)


def kernels_of(module: str, card: int) -> list[Compiled]:
    found = compiled(card)[module]
    assert not isinstance(found, str), f"{module}: {found}"
    assert found, module
    return found


@pytest.mark.parametrize("card", CARDS, ids=lambda n: f"sm_{n}")
def test_compiles_and_fits(card: int) -> None:
    for module in modules() if card == 90 else HUNGRY:
        for kernel in kernels_of(module, card):
            assert kernel.shared <= CARDS[card].shared, f"{module}: {kernel}"
            assert not kernel.early, f"{module}: {kernel}"


@pytest.mark.parametrize("card", [89, 90])
def test_linear_attention_hardly_spills(card: int) -> None:
    kernels = kernels_of(LINEAR_ATTENTION, card)
    assert all(kernel.stack <= 96 for kernel in kernels), kernels


def test_the_choice_of_experts_does_not_wait_for_other_warps() -> None:
    gates = kernels_of(GATE, 90)
    assert min(gate.warps for gate in gates) == 1
    assert all(gate.barriers < 12 for gate in gates if gate.warps == 1), gates


def test_batches_of_any_size_share_a_variant() -> None:
    names = [kernel.kernel for kernel in kernels_of(VARIANTS, 90)]
    # The experts' kernel has one variant for each of its two products.
    assert {name: names.count(name) for name in set(names) if names.count(name) > 1} == {"expert_kernel": 2}
