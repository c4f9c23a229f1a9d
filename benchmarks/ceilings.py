"""The limits of a GPU's memory and matrix units, and the time that calls take beside them."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.kernel_case import Case

_REPLAYS = 20
# Seconds of a small kernel beside its bytes when graphs are replayed: its launch, and the latency of reading and
# reducing once. Assumed from what others report, until measured.
LAUNCH = 3e-6
_WARM = 3
Call = Callable[[], object]


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: bytes a second, read and written. rates: FLOP a second by kind of product."""

    bandwidth: float
    rates: dict[str, float]

    def floor(self, case: "Case") -> float:
        """The least seconds that any version can take."""
        return max(case.moved / self.bandwidth, case.flops / self.rates[case.rate])

    def expected(self, case: "Case") -> float:
        """Return the seconds that the case is expected to take on this card."""
        return self.floor(case) / case.expected + LAUNCH * case.launches

    def bound(self, case: "Case") -> str:
        """Return what limits the case: memory bandwidth or the matrix units."""
        return "memory" if case.moved / self.bandwidth >= case.flops / self.rates[case.rate] else "matrix"


# An H200 as others measured it: a copy through torch, an 8192-cubed bf16 product of random numbers; the 8-bit rate is
# twice the latter, as the vendor's figures are, and fp32 the vendor's.
H200 = Ceilings(4.3e12, {"bf16": 790e12, "fp8": 1580e12, "fp32": 67e12})


def seconds(calls: list[Call]) -> float:
    """Median time of one call, over replays of a graph of all."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's own
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times: list[float] = []
    for _ in range(_WARM + _REPLAYS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
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
    """Measure this GPU, on random data."""
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
