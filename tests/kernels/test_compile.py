"""Every Triton kernel compiles for sm_90, fits its memory and waits for its predecessor, with a GPU or without."""

import pytest

from tests.kernels.compile import MOST_SHARED, Compiled, compile_all, modules

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def compiled() -> dict[str, list[Compiled] | str]:
    return compile_all(modules())


@pytest.mark.parametrize("module", modules())
def test_compiles(module: str, compiled: dict[str, list[Compiled] | str]) -> None:
    kernels = compiled[module]
    assert not isinstance(kernels, str), kernels
    assert kernels
    for kernel in kernels:
        assert kernel.shared <= MOST_SHARED, kernel
        assert not kernel.early, kernel
