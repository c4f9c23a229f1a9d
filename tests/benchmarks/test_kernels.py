"""Tests the kernels' benchmark without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ceilings import Ceilings
from benchmarks.kernel_case import Case

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.process
def test_every_row_runs() -> None:
    done = _run("--check")
    assert done.returncode == 0, done.stderr
    ran = [line.split(",")[0] for line in done.stdout.splitlines()]
    for name in (
        "residual + RMSNorm",
        "fp8 linear: qkv and gate of attention",
        "moe_gate",
        "int4 experts",
        "lightning prefill",
        "mla prefill",
        "sample",
    ):
        assert name in ran


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure on")
def test_measuring_needs_a_gpu() -> None:
    done = _run()
    assert done.returncode == 1
    assert "measures on a CUDA device and finds none" in done.stderr


def test_floors_are_the_larger_of_bytes_and_operations() -> None:
    ceilings = Ceilings(1e12, {"bf16": 1e14})
    case = Case("", 1, moved=1e6, flops=1e9, expected=0.5, build=lambda device: (device.type.upper, None))
    assert (ceilings.floor(case), ceilings.bound(case)) == (1e9 / 1e14, "matrix")
    assert ceilings.expected(case) == pytest.approx(2e-5 + 3e-6)
    light = Case("", 1, moved=1e9, flops=1e9, expected=0.5, build=case.build)
    assert (ceilings.floor(light), ceilings.bound(light)) == (1e9 / 1e12, "memory")
