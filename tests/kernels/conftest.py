"""Runs kernel tests on a GPU if there is one, else in Triton's interpreter on the CPU."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """The allowed differences to a reference in the same dtype."""

    rtol: float
    atol: float


_TOLERANCES = {
    torch.float32: Tolerance(1e-5, 1e-5),
    torch.bfloat16: Tolerance(2e-2, 2e-2),
    torch.float8_e4m3fn: Tolerance(0.13, 0.13),
}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the memory that `torch.empty` returns with values that make every result computed from it wrong."""
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = empty(*args, **kwargs)
        if out.dtype == torch.float8_e4m3fn:
            out.view(torch.uint8).fill_(0x7F)
            return out
        return out.fill_(float("nan") if out.is_floating_point() else 1 << 20)

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture
def device() -> torch.device:
    """The device of the tested tensors."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# The interpreter rounds to bf16 by other rules than a GPU does.
@pytest.fixture(params=[torch.float32, torch.bfloat16] if torch.cuda.is_available() else [torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The compute dtypes to test on this device."""
    return request.param


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Assert that `got` equals `expected` within the tolerance of `dtype` (None: got's) and has no NaN."""
    limit = _TOLERANCES[dtype or got.dtype]
    assert not got.float().isnan().any()
    torch.testing.assert_close(got.double(), expected.double(), rtol=limit.rtol, atol=limit.atol)
