"""Kernels compile for every kind of card and fit its memory, with a GPU or without.

All of them for sm_90, where each must also wait for its predecessor; for the other cards those whose tiles fill a
block's shared memory. `python -m tests.kernels.compile --matrix` compiles every kernel for every card.
"""

import pytest

from tests.kernels.compile import CARDS, compile_all, modules

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]
HUNGRY = [f"tests.kernels.test_triton_{name}" for name in ("mla", "mla_prefill", "linear_fp32")]


@pytest.mark.parametrize("card", CARDS, ids=lambda n: f"sm_{n}")
def test_compiles_and_fits(card: int) -> None:
    for module, kernels in compile_all(modules() if card == 90 else HUNGRY, card).items():
        assert not isinstance(kernels, str), f"{module}: {kernels}"
        assert kernels, module
        for kernel in kernels:
            assert kernel.shared <= CARDS[card].shared, f"{module}: {kernel}"
            assert not kernel.early, f"{module}: {kernel}"


@pytest.mark.parametrize("card", [89, 90])
def test_linear_attention_hardly_spills(card: int) -> None:
    (compiled,) = compile_all(["tests.kernels.test_triton_lightning"], card).values()
    assert not isinstance(compiled, str), compiled
    assert all(kernel.stack <= 96 for kernel in compiled), compiled


def test_the_choice_of_experts_does_not_wait_for_other_warps() -> None:
    (gates,) = compile_all(["tests.kernels.test_triton_moe_gate"], 90).values()
    assert not isinstance(gates, str), gates
    assert min(gate.warps for gate in gates) == 1
    assert all(gate.barriers < 12 for gate in gates if gate.warps == 1), gates


def test_batches_of_any_size_share_a_variant() -> None:
    (compiled,) = compile_all(["tests.kernels.variants"], 90).values()
    assert not isinstance(compiled, str), compiled
    names = [kernel.kernel for kernel in compiled]
    # The experts' kernel has one variant for each of its two products.
    assert {name: names.count(name) for name in set(names) if names.count(name) > 1} == {"expert_kernel": 2}
