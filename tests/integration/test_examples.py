"""Tests the example that needs no cluster; tests/cluster/test_agent.py tests the others."""

import subprocess
import sys
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "examples" / "engine.py"


def test_the_bare_engine_answers_two_prompts() -> None:
    said = subprocess.run([sys.executable, str(ENGINE)], capture_output=True, text=True, timeout=200, check=False)
    assert said.returncode == 0, said.stderr
    answers = said.stdout.splitlines()
    assert len(answers) == 2
    assert all(answer.endswith(("(stop)", "(length)")) for answer in answers)
    code = [line for line in ENGINE.read_text().splitlines() if line.strip()]
    assert len(code) <= 30
