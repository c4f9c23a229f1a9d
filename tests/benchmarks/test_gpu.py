"""Tests the script for a GPU machine with small stages on a CPU."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import gpu

ENVIRONMENT = dict(os.environ) | {"OMP_NUM_THREADS": "1"}


@pytest.mark.process
def test_stages_leave_their_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu.main(["--tiny", "--stages", "kernels", "decode", "--out", str(tmp_path), "--commit", "abc"])
    assert code == 0, capsys.readouterr().out
    results = json.loads((tmp_path / "cpu-abc.json").read_text())
    assert {name: stage["code"] for name, stage in results["stages"].items()} == {"kernels": 0, "decode": 0}
    assert "SwiGLU, 2 tokens: ran" in results["stages"]["kernels"]["output"]
    assert [d["batch"] for d in results["models"]["decode"]["decoded"]] == [1, 2]
    page = (tmp_path / "cpu-abc.md").read_text()
    assert page.startswith("# cpu, commit abc\n")
    assert "| 2 | 20 |" in page


@pytest.mark.process
def test_a_stage_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    child = "import os, time; print('child', os.getpid(), flush=True); time.sleep(300)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ran = gpu.run(["-c", script], 8.0, tmp_path / "log", ENVIRONMENT)
    assert ran.code is None
    assert ran.seconds < 60
    pid = int(ran.output.split()[1])
    # The signal has been sent; on a busy machine the process takes a moment to end.
    deadline = time.monotonic() + 60
    while not _ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_failed_stage_is_reported(tmp_path: Path) -> None:
    ran = gpu.run(["-c", "print('so far'); raise SystemExit(3)"], 60.0, tmp_path / "log", ENVIRONMENT)
    assert (ran.code, ran.output) == (3, "so far\n")


def test_default_stages_fit_into_ten_minutes() -> None:
    assert sum(gpu.LIMITS[stage] for stage in gpu.STAGES) <= 590


def test_a_limit_of_an_unknown_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("decode", "decode=soon", "sleep=3"):
        with pytest.raises(SystemExit):
            gpu.main(["--limit", wrong])
        assert f"--limit {wrong}: must be one of tests, kernels" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to run on")
def test_without_a_gpu_only_tiny_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="finds no CUDA device; --tiny"):
        gpu.main(["--stages", "kernels", "--out", str(tmp_path)])
