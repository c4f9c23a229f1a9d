"""Finds launch configurations: `python -m benchmarks.tune [--op NAME] [--tp N …]` writes this GPU's table.

It times every kernel of `benchmarks.kernels` at the model's shapes. It begins with the kernel's configuration in the
table, or its default, and halves and doubles each number in turn as long as that makes the kernel faster by more than
noise.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.ceilings import seconds
from benchmarks.kernel_case import Sizes
from benchmarks.kernels import build_sets, rows
from kernels import tuning
from kernels.tuning import Config, Key, read_table, table_path

# A change counts as faster only below this share of the time; smaller differences are noise.
_GAIN = 0.97
Timer = Callable[[], float]
Table = dict[str, dict[Key, dict[str, int]]]


def seen(call: Callable[[], object]) -> list[tuple[str, Key, Config]]:
    """The operations for which a call asks a configuration: name, key and default of each."""
    found: dict[tuple[str, Key], Config] = {}

    def note(op: str, key: Key, default: Config) -> Config:
        found[op, key] = default
        return default

    with _trial(note):
        call()
    return [(op, key, default) for (op, key), default in found.items()]


def best(timer: Timer, op: str, key: Key, start: Config) -> dict[str, int]:
    """The fastest configuration found for one operation.

    timer: seconds of a call that uses it. start: where to begin. A configuration that can't run counts as infinitely
    slow.
    """

    def time(candidate: Config) -> float:
        def answer(asked: str, at: Key, default: Config) -> Config:
            return candidate if (asked, at) == (op, key) else default

        with _trial(answer):
            try:
                return timer()
            except (RuntimeError, ValueError, TypeError, AssertionError) as error:
                print(f"    {dict(candidate)}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
                return math.inf

    found, fastest = dict(start), time(start)
    improved = True
    while improved:
        improved = False
        for name, value in list(found.items()):
            for other in (value // 2, value * 2):
                candidate = {**found, name: other}
                if other and (duration := time(candidate)) < fastest * _GAIN:
                    found, fastest, improved = candidate, duration, True
    return found


def write_table(path: Path, table: Table) -> None:
    """Write a table that `kernels.tuning.read_table` reads, sorted so that changes give small diffs."""
    lines = ["# Written by `python -m benchmarks.tune`."]
    for op, entries in sorted(table.items()):
        for key, chosen in sorted(entries.items()):
            numbers = ", ".join(f"{name} = {value}" for name, value in sorted(chosen.items()))
            lines += ["", f"[[{op}]]", f"key = {list(key)}", f"config = {{ {numbers} }}"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@contextmanager
def _trial(answer: tuning.Trial) -> Iterator[None]:
    """While it is open, kernels get their configurations from `answer`."""
    tuning.trial = answer
    try:
        yield
    finally:
        tuning.trial = None


def main() -> None:
    """Tune what the arguments name and write the table after each kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", help="only this operation")
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 4], help="rank counts whose shapes are tuned")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.tune measures kernels: it needs a CUDA device, and this machine has none")
    path = table_path(torch.cuda.get_device_name())
    table: Table = read_table(path)
    done: set[tuple[str, Key]] = set()
    for tp in arguments.tp:
        for case in rows(Sizes().over(tp)):
            calls = [call for call, _ in build_sets(case)]
            for op, key, default in seen(calls[0]):
                if (op, key) in done or arguments.op not in (None, op):
                    continue
                done.add((op, key))
                start = {**default, **table.get(op, {}).get(key, {})}
                table.setdefault(op, {})[key] = best(partial(seconds, calls), op, key, start)
                print(f"{op} {key}: {table[op][key]}", flush=True)
                write_table(path, table)


if __name__ == "__main__":
    main()
