"""Compares routing policies in a simulated fleet: `python -m benchmarks.policies [--trace PATH]`.

The fleet serves the released model on H200s; its workers advance a clock by the planner's cost model. Each policy gets
the same requests: sessions of made-up agents, requests for long answers, and a recorded trace if one is given. It
prints goodput (answers per second that meet both targets), the 99th percentile of the time to the first token, and the
share of prompt tokens that were not computed. Goodput and time are means over seeds with the half-width of their 95 %
intervals. Then it lists the rows in which the default policy does not lead.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.policies.baselines import POLICIES
from benchmarks.policies.simulate import Setup, Simulation, Targets, scaled
from benchmarks.policies.workers import Flight
from benchmarks.policies.workload import Session, agents, answers, trace
from planner.cards import find_card
from planner.coefficients import coefficients
from planner.model import RELEASED, load_model
from router.relay.costs import Costs

# Two-sided 95 % of Student's t by degrees of freedom.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
_COUNT = 2500  # requests that one run takes from a trace


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run: goodput in answers/s, p99 of the time to the first token, share of cached tokens."""

    goodput: float
    p99_s: float
    cached: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and half the width of its 95 % confidence interval."""

    mean: float
    half: float

    def text(self, digits: int) -> str:
        """The mean and the half-width as text."""
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"

    @staticmethod
    def of(values: list[float]) -> "Interval":
        """The interval of the values, one per seed."""
        if len(values) < 2:
            return Interval(values[0], math.nan)
        error = statistics.stdev(values) / math.sqrt(len(values))
        return Interval(statistics.mean(values), _T.get(len(values) - 1, 1.96) * error)


def costs(itl_s: float) -> Costs:
    """The costs of the released model in FP8 with four H200 per worker, at 0.4 of the planner's limit.

    itl_s: target between tokens, in seconds.
    """
    found = coefficients(load_model(RELEASED, "fp8"), find_card("h200-141gb"), 4, 8192, 12.5e9)
    return scaled(Costs(**asdict(found), itl_s=itl_s), 0.4)


def figures(flights: list[Flight], targets: Targets) -> Figures:
    """The figures of a run, from all its requests."""
    seconds = max(f.arrived for f in flights) or 1.0
    first = sorted(f.first - f.arrived for f in flights)
    return Figures(
        sum(targets.met(f) for f in flights) / seconds,
        first[min(len(first) - 1, math.ceil(0.99 * len(first)) - 1)],
        sum(f.cached for f in flights) / sum(f.ask.prompt for f in flights),
    )


def _workloads(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    for rate in arguments.sessions:
        yield "agents", rate
    for rate in arguments.answers:
        yield "answers", rate
    for speed in arguments.speeds if arguments.trace else ():
        yield "trace", speed


def _sessions(kind: str, load: float, seed: int, arguments: argparse.Namespace) -> list[Session]:
    if kind == "agents":
        return list(agents(load, arguments.seconds, seed))
    if kind == "answers":
        return list(answers(load, arguments.seconds / 2, seed))
    return list(trace(arguments.trace, load, seed * _COUNT // 2, _COUNT))


def main() -> int:
    """Simulate all policies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="requests in Mooncake's format, a JSON object a line")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds in which agents' sessions begin")
    parser.add_argument(
        "--sessions", type=float, nargs="*", default=[1.0, 2.0, 3.0], help="agents' sessions that begin per second"
    )
    parser.add_argument(
        "--answers", type=float, nargs="*", default=[30.0, 40.0], help="requests for long answers per second"
    )
    parser.add_argument(
        "--speeds", type=float, nargs="*", default=[4.0, 8.0, 10.0], help="factors by which the trace is sped up"
    )
    parser.add_argument("--first-s", type=float, default=1.0, help="target for the time to the first token")
    parser.add_argument(
        "--token-s", type=float, default=0.03, help="target for the mean time between an answer's tokens"
    )
    arguments = parser.parse_args()
    targets = Targets(arguments.first_s, arguments.token_s)
    setup = Setup(costs(arguments.token_s))
    print(f"{setup.prefills} prefill and {setup.decodes} decode workers, seeds 0 to {arguments.seeds - 1}, targets "
          f"{targets.first_s:g} s and {targets.token_s * 1e3:g} ms")  # fmt: skip
    print("| workload | policy | asked/s | goodput/s | p99 TTFT s | cached |")
    print("|---|---|---|---|---|---|")
    behind: list[str] = []
    for kind, load in _workloads(arguments):
        came: dict[str, tuple[Interval, Interval]] = {}
        for name, policy in POLICIES.items():
            runs, asked = [], []
            for seed in range(arguments.seeds):
                flights = Simulation(setup, policy, seed).run(_sessions(kind, load, seed, arguments))
                runs.append(figures(flights, targets))
                asked.append(len(flights) / max(f.arrived for f in flights))
            goodput, p99 = Interval.of([r.goodput for r in runs]), Interval.of([r.p99_s for r in runs])
            cached = statistics.mean(r.cached for r in runs)
            came[name] = goodput, p99
            asks = f"{statistics.mean(asked):.1f}"
            cells = f"{kind} {load:g}", name, asks, goodput.text(2), p99.text(3), f"{cached:.0%}"
            print(f"| {' | '.join(cells)} |", flush=True)
        behind += _behind(f"{kind} {load:g}", came)
    print("\nThe default leads in every row." if not behind else "\nWhere the default does not lead:")
    for line in behind:
        print(f"- {line}")
    return 0


def _behind(workload: str, came: dict[str, tuple[Interval, Interval]]) -> list[str]:
    goodput, p99 = came["default"]
    lines = []
    for name, (theirs, their_p99) in came.items():
        if theirs.mean > goodput.mean:
            lines.append(f"{workload}: {name} has a goodput of {theirs.mean:.2f}/s, the default {goodput.mean:.2f}/s")
        if their_p99.mean < p99.mean:
            lines.append(f"{workload}: {name} has a p99 TTFT of {their_p99.mean:.3f} s, the default {p99.mean:.3f} s")
    return lines


if __name__ == "__main__":
    sys.exit(main())
