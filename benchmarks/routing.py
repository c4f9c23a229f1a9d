"""Measures the CPU time of a routing decision and the memory of the prefix index: `python -m benchmarks.routing`.

A decision takes in one worker's new load, makes a view of the fleet, looks up what workers keep of the prompt, and
chooses. The second figure is the worst case: all workers have sent new loads since the last decision.
"""

import argparse
import random
import resource
import statistics
import time

from router.relay.costs import Costs
from router.relay.fleet import Roster, WorkerState, standing
from router.relay.policy import Need, choose
from router.relay.prefixes import Candidates, Holder, PrefixIndex
from wire.protocol import KeptEvent, Load, RankInfo, Role, WorkerInfo

_COSTS = Costs()
_TURNS = 30  # turns of the conversation whose next request is routed


def _fleet(workers: int, rng: random.Random) -> list[WorkerState]:
    out = []
    for n in range(workers):
        role: Role = "prefill" if n % 2 else "decode"
        ranks = tuple(RankInfo(r, 1, "n", "cuda", "h", 1) for r in range(4))
        info = WorkerInfo(f"{role}-{n}", role, "h", 1, "n", 1, "w", "l", 1, 64, 40_000, 64, 131_072, ranks)
        used = rng.randrange(60)
        load = Load(0, rng.randrange(30_000), used, 40_000 - 500 * used, 64 - used, 0, 0.01, 1e-5, 0, 0, 0, 0.012)
        out.append(WorkerState(info, load, rng.randrange(2)))
    return out


def _digest(rng: random.Random) -> bytes:
    return rng.randbytes(16)


def decisions(workers: int, times: int) -> tuple[float, float]:
    """Measure the median CPU seconds of a decision: after one worker sent new figures, and after all workers did."""
    rng = random.Random(workers)
    states = _fleet(workers, rng)
    index = PrefixIndex()
    system = _digest(rng)
    turns = [_digest(rng) for _ in range(_TURNS)]
    for at, state in enumerate(states):
        holder = Holder(state.info.worker_id)
        index.update(holder, [KeptEvent(4_000, system, "device")])
        if at < 3:
            index.update(holder, [KeptEvent(4_000 + 2_000 * n, turns[n], "device") for n in range(5, 25)])
    of = Candidates.of([*((4_000 + 2_000 * n, turns[n]) for n in reversed(range(_TURNS))), (4_000, system)])
    roster = Roster(_COSTS)
    for state in states:
        roster.put(standing(state, _COSTS))

    def timed(fresh: bool) -> float:
        began = time.process_time_ns()
        for state in states if fresh else states[:1]:
            roster.put(standing(state, _COSTS))
        choose(roster.fleet(), Need(64_000, 300, rng.getrandbits(32), index.held(of)), split=True)
        return (time.process_time_ns() - began) / 1e9

    return statistics.median(timed(False) for _ in range(times)), statistics.median(timed(True) for _ in range(times))


def index_bytes(workers: int, prefixes: int) -> int:
    """Bytes by which this process grows with an index of `prefixes` prefixes per worker, all of them different."""
    rng = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = PrefixIndex()
    for n in range(workers):
        holder = Holder(f"worker-{n}")
        index.update(holder, (KeptEvent(1, _digest(rng), "device") for _ in range(prefixes)))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    """Print the cost of decisions and the memory of the index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=300, help="decisions to measure")
    parser.add_argument("--index-workers", type=int, default=1000, help="workers in the index; 0 leaves the index out")
    parser.add_argument("--prefixes", type=int, default=10_000, help="prefixes that each worker keeps")
    arguments = parser.parse_args()
    print("| workers | a decision | with all figures new |")
    print("|---|---|---|")
    for workers in (8, 64, 1000):
        known, fresh = decisions(workers, arguments.times)
        print(f"| {workers} | {known * 1e6:.0f} us | {fresh * 1e6:.0f} us |")
    if arguments.index_workers:
        grown = index_bytes(arguments.index_workers, arguments.prefixes)
        what = f"{arguments.index_workers} workers x {arguments.prefixes} prefixes"
        print(f"index of {what}: {grown / 1e6:.0f} MB at its peak")


if __name__ == "__main__":
    main()
