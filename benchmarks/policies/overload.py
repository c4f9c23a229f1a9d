"""Simulates a minute of ten times the load that a fleet can serve: `python -m benchmarks.policies.overload`.

One tenant sends requests with deadlines at a sustainable rate, then at ten times that rate for a minute, then at the
first rate again. It prints, for each five seconds, the arriving requests and those answered within both targets, and
the goodput during the overload against the fleet's best. It exits with 1 if the goodput is below 0.9 of the best, or if
less than 0.99 of the requests that arrive 2 s or more after the overload are answered within the targets.
"""

import argparse
import random
import sys
from collections.abc import Iterator

from benchmarks.policies.__main__ import costs
from benchmarks.policies.baselines import POLICIES
from benchmarks.policies.simulate import Setup, Simulation, Targets
from benchmarks.policies.workload import Ask, Session
from router.relay.fair import FairQueue

TARGETS = Targets(1.0, 0.03)
_SLICE_S = 5.0


def arrivals(rate: float, begin: float, seconds: float, seed: int) -> Iterator[Session]:
    """Yield unrelated requests that arrive at `rate` per second for `seconds` from `begin` on."""
    rng = random.Random(seed)
    at = begin
    while (at := at + rng.expovariate(rate)) < begin + seconds:
        prompt = max(16, int(rng.lognormvariate(8.3, 0.8)))
        yield Session(at, [Ask(prompt, 2 + int(rng.expovariate(1 / 200)), ())])


def goodput(sessions: list[Session], begin: float, seconds: float, setup: Setup) -> tuple[Simulation, float]:
    """Simulate the requests; returns the run and the goodput, in answers/s, of those that arrive in the time span."""
    simulation = Simulation(setup, POLICIES["default"], 0, FairQueue(1 << 30), deadline_s=TARGETS.first_s)
    flights = simulation.run(sessions)
    good = sum(TARGETS.met(f) for f in flights if begin <= f.arrived < begin + seconds)
    return simulation, good / seconds


def overload(rate: float, times: float, seconds: float, setup: Setup) -> tuple[float, float, Simulation]:
    """Simulate the overload.

    Returns the goodput during it in answers/s, the share of good answers among requests after it, and the run.
    """
    parts = ((rate, 0.0, 20.0), (times * rate, 20.0, seconds), (rate, 20.0 + seconds, 20.0))
    sessions = [session for n, part in enumerate(parts) for session in arrivals(*part, seed=n)]
    simulation, amid = goodput(sessions, 20.0, seconds, setup)
    after = [f for f in simulation.flights if f.arrived >= 22.0 + seconds]
    return amid, sum(TARGETS.met(f) for f in after) / len(after), simulation


def main() -> int:
    """Simulate the overload, print the table, and return 1 if the fleet does not hold up, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second that the fleet sustains")
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    setup = Setup(costs(TARGETS.token_s))
    best = max(
        goodput(list(arrivals(arguments.rate * k / 4, 0.0, 30.0, seed=9)), 0.0, 30.0, setup)[1] for k in range(4, 10)
    )
    amid, after, simulation = overload(arguments.rate, arguments.times, arguments.seconds, setup)
    print("| seconds | came/s | good/s |")
    print("|---|---|---|")
    for n in range(int((40 + arguments.seconds) / _SLICE_S)):
        here = [f for f in simulation.flights if n * _SLICE_S <= f.arrived < (n + 1) * _SLICE_S]
        print(f"| {n * _SLICE_S:.0f} | {len(here) / _SLICE_S:.0f} | {sum(map(TARGETS.met, here)) / _SLICE_S:.0f} |")
    print(f"goodput amid the overload {amid:.1f}/s of {best:.1f}/s at its best; most that waited at once: "
          f"{simulation.most_waiting}; good from 2 s after it on: {after:.1%}")  # fmt: skip
    return 0 if amid >= 0.9 * best and after >= 0.99 else 1


if __name__ == "__main__":
    sys.exit(main())
