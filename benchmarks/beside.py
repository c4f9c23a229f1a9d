"""Runs a benchmark of this checkout and of an earlier commit in turns, and prints the ratio of each figure.

    python -m benchmarks.beside COMMIT MODULE [--rounds N] [-- arguments of the benchmark]

MODULE is a file of `benchmarks` that both have, such as token_path. The earlier commit is checked out into a temporary
folder and runs with the same interpreter and packages. A line's figures are compared if both print the same line but
for its numbers; the ratio is that of the medians over all rounds, this checkout's over the earlier one's.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

_ROOT = Path(__file__).resolve().parents[1]
_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")
# Key: a line without its numbers, and how often the same line came before in the run. Value: its numbers, by round.
Figures = dict[tuple[str, int], list[list[float]]]


def run(checkout: Path, module: str, arguments: list[str]) -> str:
    """Run a benchmark of a checkout and return what it prints; CalledProcessError if it fails."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def figures(text: str, into: Figures) -> None:
    """Add the numbers of each line of a benchmark's output to `into`."""
    seen: Counter[str] = Counter()
    for line in text.splitlines():
        numbers = [float(n.replace(",", "")) for n in _NUMBER.findall(line)]
        words = _NUMBER.sub("#", line)
        if numbers:
            into[words, seen[words]].append(numbers)
            seen[words] += 1


def compare(now: Figures, before: Figures) -> list[str]:
    """A line for each line that both print, with both medians and their ratio in place of each number."""
    lines = []
    for key in now.keys() & before.keys():
        line = key[0]
        mine, theirs = ([median(column) for column in zip(*rounds, strict=True)] for rounds in (now[key], before[key]))
        for m, t in zip(mine, theirs, strict=True):
            line = line.replace("#", f"{m:g}|{t:g}|{m / t:.2f}" if t else f"{m:g}|{t:g}|-", 1)
        lines.append(line)
    return sorted(lines)


def main() -> None:
    """Run both checkouts in turns, print all outputs, and then the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("module", help="a benchmark, such as token_path or serving")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("arguments", nargs="*", help="arguments of the benchmark, after --")
    given = parser.parse_args()
    now: Figures = defaultdict(list)
    before: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        git = ["git", "-C", str(_ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(earlier), given.commit], check=True)
        try:
            for n in range(given.rounds):
                for name, checkout, into in (("now", _ROOT, now), (given.commit, earlier, before)):
                    text = run(checkout, given.module, given.arguments)
                    print(f"--- {name}, round {n + 1}\n{text}", flush=True)
                    figures(text, into)
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)
    print(f"--- now | {given.commit} | ratio, medians of {given.rounds}")
    print("\n".join(compare(now, before)) or "no line is the same in both but for its numbers")


if __name__ == "__main__":
    main()
