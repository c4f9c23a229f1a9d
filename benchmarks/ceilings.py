"""Measures the limits of a GPU's memory and matrix units, and the time that kernels take."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from benchmarks.kernel_case import Case

_REPLAYS = 20
# Seconds that a kernel in a replayed graph takes besides moving its bytes: its launch, and the latency of one read and
# one reduction. Assumed from what others report; not measured.
LAUNCH = 3e-6
_WARM = 3
Call = Callable[[], object]


@dataclass(frozen=True)
class Ceilings:
    """A GPU's limits. bandwidth: bytes/s of reads and writes together. rates: FLOP/s by kind of matrix product."""

    bandwidth: float
    rates: dict[str, float]

    def floor(self, case: "Case") -> float:
        """The shortest time, in seconds, that any implementation of the case can take."""
        return max(case.moved / self.bandwidth, case.flops / self.rates[case.rate])

    def expected(self, case: "Case") -> float:
        """The seconds that the case should take on this GPU, launches included."""
        return self.floor(case) / case.expected + LAUNCH * case.launches

    def bound(self, case: "Case") -> str:
        """What limits the case: "memory" (bandwidth) or "matrix" (units)."""
        return "memory" if case.moved / self.bandwidth >= case.flops / self.rates[case.rate] else "matrix"


# An H200 as others measured it: bandwidth by a copy in torch, bf16 by an 8192-cubed product of random numbers. The fp8
# rate is twice the bf16 rate, as in the vendor's figures; fp32 is the vendor's figure.
H200 = Ceilings(4.3e12, {"bf16": 790e12, "fp8": 1580e12, "fp32": 67e12})


def seconds(calls: list[Call]) -> float:
    """The seconds of one call: the median over replays of a CUDA graph of all calls, divided by their number."""
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
    """Measure this GPU's limits with random data."""
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
