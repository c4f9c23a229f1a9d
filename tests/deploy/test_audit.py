"""Tests how `.ci/audit` reads pip-audit's answers."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.deploy.scripts import load

KNOWN = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2"]}]}
SOUND = {"name": "b", "version": "2", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([SOUND, UNKNOWN], 0, "0 known weaknesses in the 1 of 2 versions"),
        ([KNOWN, SOUND], 1, "a 1: PYSEC-1, mended in 1.1, 2"),
        ([UNKNOWN, UNKNOWN], 3, "no advisories could be had: .* none of 2"),
        (None, 3, "no advisories could be had: ERROR: no route"),
    ],
)
def test_a_known_weakness_fails_and_no_answer_is_no_all_clear(
    found: list[dict[str, Any]] | None,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    audit = load("audit")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pip-audit").touch()
    monkeypatch.setattr(audit, "VENV", tmp_path)
    answer = "" if found is None else json.dumps({"dependencies": found})
    monkeypatch.setattr(audit, "run", lambda *command: CompletedProcess(command, 1, answer, "WARN\nERROR: no route\n"))
    assert audit.main() == code
    printed = capsys.readouterr().out
    assert re.search(said, printed)
