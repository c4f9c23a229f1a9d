"""Tests the whole model's benchmark on a small config, with only the packages that a bare GPU machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ceilings import H200
from benchmarks.decode import limit_s
from benchmarks.decode_report import markdown
from planner.model import RELEASED, load_model
from planner.work import Step, Work, work

ROOT = Path(__file__).parents[2]
ABSENT = ("ray", "pydantic", "fastapi", "starlette", "uvicorn", "typer", "httpx", "psutil", "prometheus_client", "yaml")
WITHOUT = (
    f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT}));"
    "runpy.run_module(sys.argv.pop(1), alter_sys=True, run_name='__main__')"
)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, "benchmarks.decode", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.process
def test_a_small_model(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    sizes = ("--batch", "1", "3", "--context", "20", "70", "--prefill", "40", "--steps", "2")
    done = _run("--config", "tests/golden/base", "--dtype", "fp8", "--device", "cpu", *sizes, "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["model"]["weights"] == "fp8"
    assert [(d["batch"], d["context"], d["steps"]) for d in report["decoded"]] == [
        (1, 20, 2), (3, 20, 2), (1, 70, 2), (3, 70, 2),
    ]  # fmt: skip
    assert all(d["tokens_per_s"] > 0 and d["fraction"] is None for d in report["decoded"])
    assert [p["tokens"] for p in report["prefilled"]] == [40]
    assert [(s["batch"], s["context"]) for s in report["splits"]] == [(1, 20), (3, 20)]
    for split in report["splits"]:
        assert len(split["parts_ms"]) == 8
        assert all(ms > 0 for ms in split["parts_ms"].values())
    assert not report["skipped"]
    for line in markdown(report):
        assert line in done.stdout


@pytest.mark.process
def test_a_measurement_without_time_is_left_out_and_listed(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = _run(
        "--config", "tests/golden/base", "--device", "cpu", "--batch", "1", "--context", "20", "--prefill", "20",
        "--seconds", "0", "--json", str(file),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert not report["decoded"]
    assert [line.split(":")[0] for line in report["skipped"]] == ["batch 1 at 20", "prefill of 20"]
    assert "left out: batch 1 at 20" in done.stdout


def test_the_limit_is_the_larger_of_bytes_and_operations() -> None:
    def done(weights: float, bf16: float, fp8: float) -> Work:
        return Work(weights, 0.0, 0.0, bf16, fp8, 0, 0.0, 0.0)

    assert limit_s(done(4.3e12, 1.0, 1.0), H200) == pytest.approx(1.0)
    assert limit_s(done(1.0, 790e12, 1580e12), H200) == pytest.approx(2.0)


def test_the_released_model_needs_no_less_than_the_planner_says() -> None:
    limit = limit_s(work(load_model(RELEASED, "fp8"), Step(1, 1, 1024, 1), 1), H200)
    assert 500 < 1 / limit < 600
