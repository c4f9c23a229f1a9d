"""How near every kernel comes to what the GPU's memory and matrix units allow, at the model's own shapes.

`python -m benchmarks.kernels` measures on a GPU: first its ceilings (a large copy, large matrix products), then each
kernel, one captured graph over several sets of inputs that together exceed the cache, the median of its replays.
`--only TEXT` takes the rows whose name holds TEXT, `--tp N` one degree. `--floors` prints, without a GPU, what is
expected by the figures of an H200: of whole decode steps, by their bytes and counted launches, and of each row;
`--check` runs every row once at tiny shapes, in Triton's interpreter where there is no GPU.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.kernel_case import Case, Sizes

_CACHE = 60 << 20
_MOST_SETS = 24
_REPLAYS = 20
# What a launch takes of its own when graphs are replayed, roughly.
LAUNCH = 1.5e-6
_WARM = 3
Call = Callable[[], object]


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: bytes a second, read and written. rates: FLOP a second by kind of product."""

    bandwidth: float
    rates: dict[str, float]

    def floor(self, case: "Case") -> float:
        """Seconds no version can run below."""
        return max(case.moved / self.bandwidth, case.flops / self.rates[case.rate])

    def expected(self, case: "Case") -> float:
        """Seconds it should take."""
        return self.floor(case) / case.expected + LAUNCH * case.launches

    def bound(self, case: "Case") -> str:
        """Which of the two it is."""
        return "memory" if case.moved / self.bandwidth >= case.flops / self.rates[case.rate] else "matrix"


# An H200 as others measured it: a copy through torch, an 8192-cubed bf16 product of random numbers; the 8-bit rate is
# twice the latter, as the vendor's figures are, and fp32 the vendor's.
H200 = Ceilings(4.3e12, {"bf16": 790e12, "fp8": 1580e12, "fp32": 67e12})


def rows(sizes: "Sizes") -> Iterator["Case"]:
    """All rows of one rank."""
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


def seconds(calls: list[Call]) -> float:
    """Median time of one call, over replays of a graph of all."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(_WARM + _REPLAYS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(begun.elapsed_time(ended) / 1e3)
    return statistics.median(times[_WARM:]) / len(calls)


def _copy_rate(device: torch.device) -> float:
    source = torch.randn(1 << 30, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds([lambda: target.copy_(source)])


def measure_ceilings() -> Ceilings:
    """Of this GPU, on random data."""
    device, size = torch.device("cuda"), 8192
    bandwidth = _copy_rate(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    a16, b16 = a.bfloat16(), b.bfloat16()
    a8, b8, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t(), torch.ones((), device=device)
    products: dict[str, Call] = {
        "bf16": lambda: a16 @ b16,
        "fp8": lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16),
        "fp32": lambda: a @ b,
    }
    return Ceilings(bandwidth, {kind: 2 * size**3 / seconds([call]) for kind, call in products.items()})


def build_sets(case: "Case") -> list[tuple[Call, Call | None]]:
    """Kernel and yardstick over several sets of inputs, which together exceed the cache."""
    sets = max(1, min(_MOST_SETS, int(2 * _CACHE / max(case.moved, 1)) + 1))
    return [case.build(torch.device("cuda")) for _ in range(sets)]


def measure(case: "Case") -> tuple[float, float | None]:
    """Seconds of the kernel and of its yardstick."""
    built = build_sets(case)
    others = [other for _, other in built if other is not None]
    return seconds([call for call, _ in built]), seconds(others) if others else None


def _told(case: "Case", ceilings: Ceilings, tp: int) -> str:
    sizes = f"{case.name:34}{tp:>3}{case.tokens:>6}{case.moved / 1e6:>11.3f}{case.flops / 1e9:>11.3f}"
    return f"{sizes}{ceilings.floor(case) * 1e6:>10.2f}  {ceilings.bound(case):7}"


_HEAD = f"{'kernel':34}{'tp':>3}{'batch':>6}{'MB':>11}{'GFLOP':>11}{'floor us':>10}  {'bound':7}"


def report(chosen: list[tuple[int, "Case"]]) -> None:
    """Measure and print."""
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
    """Print a table in Markdown."""
    print("| kernel | TP | batch | MB | GFLOP | floor, us | bound | of it | expected, us |")
    print("|---|---|---|---|---|---|---|---|---|")
    for tp, case in chosen:
        floor = H200.floor(case) * 1e6
        print(
            f"| {case.name} | {tp} | {case.tokens} | {case.moved / 1e6:.3g} | {case.flops / 1e9:.3g} | {floor:.3g} "
            f"| {H200.bound(case)} | {case.expected:.0%} | {H200.expected(case) * 1e6:.3g} |"
        )


def check(chosen: list[tuple[int, "Case"]]) -> None:
    """Run every row's kernel and yardstick once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for _, case in chosen:
        for call in case.build(device):
            if call is not None:
                call()
        print(f"{case.name}, {case.tokens} tokens: ran")


def main(arguments: list[str]) -> None:
    """Do what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--tp", type=int, choices=(1, 4))
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--floors", action="store_true")
    what.add_argument("--check", action="store_true")
    asked = parser.parse_args(arguments)
    if not (asked.floors or asked.check or torch.cuda.is_available()):
        sys.exit("benchmarks.kernels measures on a CUDA device and finds none; --floors and --check need none")
    if asked.check and not torch.cuda.is_available():
        # Triton reads it when a kernel is defined.
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
