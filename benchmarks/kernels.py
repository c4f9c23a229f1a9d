"""Measures how close every kernel comes to the limits of the GPU's memory and matrix units, at the model's shapes.

`python -m benchmarks.kernels` measures on a GPU: first its limits (a large copy, large matrix products), then each
kernel. A kernel runs in one captured graph over several sets of inputs, which together exceed the GPU's cache; the
median of the replays counts. `--only TEXT` selects the rows whose name contains TEXT, `--tp N` the shapes of one of N
ranks. `--floors` needs no GPU: it prints the times to expect by an H200's figures, of whole decode steps (by their
bytes and counted launches) and of each row. `--check` runs every row once at tiny shapes, without a GPU in Triton's
interpreter.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from benchmarks.ceilings import H200, Call, Ceilings, measure_ceilings, seconds

if TYPE_CHECKING:
    from benchmarks.kernel_case import Case, Sizes

_CACHE = 60 << 20
_MOST_SETS = 24


def rows(sizes: "Sizes") -> Iterator["Case"]:
    """Yield all rows of one rank."""
    from benchmarks.kernel_attention import lightning, mla
    from benchmarks.kernel_elementwise import elementwise
    from benchmarks.kernel_products import experts, head, linears

    for tokens in (*sizes.decode, sizes.prefill):
        yield from elementwise(sizes, tokens)
    for make in (linears, experts):
        for tokens in (*sizes.decode, sizes.prefill):
            yield from make(sizes, tokens)
    for tokens in sizes.decode:
        yield from head(sizes, tokens)
    yield from lightning(sizes)
    yield from mla(sizes)


def build_sets(case: "Case") -> list[tuple[Call, Call | None]]:
    """Build calls of a case's kernel and yardstick over several sets of inputs, which together exceed the cache."""
    sets = max(1, min(_MOST_SETS, int(2 * _CACHE / max(case.moved, 1)) + 1))
    return [case.build(torch.device("cuda")) for _ in range(sets)]


def measure(case: "Case") -> tuple[float, float | None]:
    """The seconds of a case's kernel and of its yardstick; None without a yardstick."""
    built = build_sets(case)
    others = [other for _, other in built if other is not None]
    return seconds([call for call, _ in built]), seconds(others) if others else None


def _told(case: "Case", ceilings: Ceilings, tp: int) -> str:
    sizes = f"{case.name:34}{tp:>3}{case.tokens:>6}{case.moved / 1e6:>11.3f}{case.flops / 1e9:>11.3f}"
    return f"{sizes}{ceilings.floor(case) * 1e6:>10.2f}  {ceilings.bound(case):7}"


_HEAD = f"{'kernel':34}{'tp':>3}{'batch':>6}{'MB':>11}{'GFLOP':>11}{'floor us':>10}  {'bound':7}"


def report(chosen: list[tuple[int, "Case"]]) -> None:
    """Measure the cases, each with its tp, and print a line for each."""
    ceilings = measure_ceilings()
    print(torch.cuda.get_device_name())
    products = (f"{kind} {rate / 1e12:.0f} TFLOP/s" for kind, rate in ceilings.rates.items())
    print(f"copy {ceilings.bandwidth / 1e12:.2f} TB/s", *products, sep=", ")
    print(f"{_HEAD}{'came us':>10}{'achieved':>14}{'fraction':>9}{'expected us':>13}{'other us':>10}  other")
    for tp, case in chosen:
        came, other = measure(case)
        torch.cuda.empty_cache()
        if ceilings.bound(case) == "memory":
            achieved = f"{case.moved / came / 1e9:.0f} GB/s"
        else:
            achieved = f"{case.flops / came / 1e12:.0f} TFLOP/s"
        beside = f"{other * 1e6:>10.2f}  {case.yardstick}" if other is not None else ""
        print(
            f"{_told(case, ceilings, tp)}{came * 1e6:>10.2f}{achieved:>14}"
            f"{ceilings.floor(case) / came:>9.2f}{ceilings.expected(case) * 1e6:>13.2f}{beside}",
            flush=True,
        )


def floors(chosen: list[tuple[int, "Case"]]) -> None:
    """Print the cases' floors and expected times on an H200 as a table in Markdown."""
    print("| kernel | TP | batch | MB | GFLOP | floor, us | bound | of it | expected, us |")
    print("|---|---|---|---|---|---|---|---|---|")
    for tp, case in chosen:
        floor = H200.floor(case) * 1e6
        print(
            f"| {case.name} | {tp} | {case.tokens} | {case.moved / 1e6:.3g} | {case.flops / 1e9:.3g} | {floor:.3g} "
            f"| {H200.bound(case)} | {case.expected:.0%} | {H200.expected(case) * 1e6:.3g} |"
        )


def check(chosen: list[tuple[int, "Case"]]) -> None:
    """Run each case's kernel and yardstick once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for _, case in chosen:
        for call in case.build(device):
            if call is not None:
                call()
        print(f"{case.name}, {case.tokens} tokens: ran")


def main(arguments: list[str]) -> None:
    """Parse the command line and measure, predict or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only rows whose name contains this text")
    parser.add_argument("--tp", type=int, choices=(1, 4), help="only the shapes of one of so many ranks")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--floors", action="store_true", help="print the times to expect on an H200; needs no GPU")
    what.add_argument("--check", action="store_true", help="run every row once at tiny shapes; needs no GPU")
    asked = parser.parse_args(arguments)
    if not (asked.floors or asked.check or torch.cuda.is_available()):
        sys.exit("benchmarks.kernels measures on a CUDA device and finds none; --floors and --check need none")
    if asked.check and not torch.cuda.is_available():
        # Triton reads the variable when a kernel is defined, so it is set before the kernels are imported.
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.kernel_case import TINY, Sizes

    whole = TINY if asked.check else Sizes()
    degrees = (1,) if asked.check else (asked.tp,) if asked.tp else (1, 4)
    chosen = [(tp, case) for tp in degrees for case in rows(whole.over(tp)) if asked.only in case.name]
    if asked.floors:
        from benchmarks.steps import expected

        if not asked.only:
            expected()
        floors(chosen)
    elif asked.check:
        check(chosen)
    else:
        report(chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
