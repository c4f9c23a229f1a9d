"""Tests whether an operation's reference or its kernel runs."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import kernels.dispatch
from kernels.dispatch import dispatch


def double_reference(x: Tensor, by: int = 2) -> str:
    """Multiply x by `by`."""
    return f"reference of {len(x)} by {by}"


def double_triton(x: Tensor, by: int = 2, tuned: object = None) -> str:
    return f"kernel of {len(x)} by {by}"


double = dispatch(double_reference, double_triton)


def test_an_operation_is_its_reference_by_name_and_words() -> None:
    assert double.__name__ == "double"
    assert double.__doc__ == "Multiply x by `by`."


@pytest.mark.parametrize(
    ("forced", "expected"), [(None, "reference"), ("reference", "reference"), ("triton", "kernel")]
)
def test_a_cpu_runs_the_reference_unless_told_otherwise(
    forced: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.dispatch, "FORCED", forced)
    assert double(torch.zeros(3), by=5) == f"{expected} of 3 by 5"


@pytest.mark.process
def test_an_unknown_choice_is_refused_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"],
        env={**os.environ, "LING_KERNELS": "cuda"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode
    assert "LING_KERNELS must be one of triton, reference or unset, not 'cuda'" in done.stderr
