"""Tests that `ling convert` prints lines instead of a progress bar where there is no terminal."""

from pathlib import Path

from typer.testing import CliRunner

from cluster.cli import app
from cluster.resolve import EMBEDDED


def test_progress_is_a_line_each_step(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["convert", str(EMBEDDED), str(tmp_path / "tp2"), "--shard-for", "tp=2"])
    assert done.exit_code == 0, done.output
    for doing in ("verifying: ", "converting: "):
        lines = [line.removeprefix(doing) for line in done.stderr.splitlines() if line.startswith(doing)]
        shares = [int(line.split(" % of ")[0]) for line in lines]
        assert shares == sorted(set(shares))
        assert len(shares) > 3
        assert shares[-1] == 100
