"""Baseline policies, as other routers have them: pure functions over the same view of the fleet.

Each takes the fleet, the need, and `number`, the count of requests routed before this one.
"""

import zlib
from collections.abc import Callable, Sequence

from router.relay.fleet import Fleet, Standing
from router.relay.policy import Need, NoPlan, Plan, choose

Policy = Callable[[Fleet, Need, int], Plan | NoPlan]
# The prefix tree's policy: a match of more than this share of the prompt decides, unless the numbers of requests differ
# by more than this count and this factor.
_MATCH, _MOST_APART, _MOST_TIMES = 0.3, 64, 1.5
_BLOCK = 64


def default(fleet: Fleet, need: Need, number: int) -> Plan | NoPlan:
    """Choose as the router does."""
    return choose(fleet, need, split=True)


def round_robin(fleet: Fleet, need: Need, number: int) -> Plan | NoPlan:
    """Choose the workers of each pool in turn."""
    return _pair(fleet.prefills[number % len(fleet.prefills)], fleet.decodes[number % len(fleet.decodes)], need)


def least_requests(fleet: Fleet, need: Need, number: int) -> Plan | NoPlan:
    """Choose in each pool the worker with the fewest requests."""
    return _pair(_least(fleet.prefills, need), _least(fleet.decodes, need), need)


def power_of_two(fleet: Fleet, need: Need, number: int) -> Plan | NoPlan:
    """Choose in each pool, of two random workers, the one with fewer requests."""
    return _pair(_least(_two(fleet.prefills, need), need), _least(_two(fleet.decodes, need), need), need)


def prefix_tree(fleet: Fleet, need: Need, number: int) -> Plan | NoPlan:
    """Choose the prefill worker that keeps the longest prefix, if it is long enough, else the one that keeps least.

    If loads have drifted apart, it chooses the one with the fewest requests. Decode workers are chosen by power of two.
    SGLang's router does the same.
    """
    pool = fleet.prefills
    loads = [_requests(s) for s in pool]
    if max(loads) - min(loads) > _MOST_APART and max(loads) > _MOST_TIMES * min(loads):
        prefill = _least(pool, need)
    else:
        best = max(pool, key=lambda s: (need.begin(s.worker_id), _tie(s, need)))
        if need.begin(best.worker_id) / need.prompt_tokens > _MATCH:
            prefill = best
        else:
            prefill = min(pool, key=lambda s: (s.state.load.kept, _tie(s, need)))
    return _pair(prefill, _least(_two(fleet.decodes, need), need), need)


def kv_overlap(fleet: Fleet, need: Need, number: int) -> Plan | NoPlan:
    """Choose the prefill worker with the least sum of blocks to compute and blocks in use.

    The decode worker is the one with the fewest blocks in use. It follows the idea of Dynamo's KV-overlap cost.
    """

    def cost(s: Standing, overlap: int) -> tuple[float, int]:
        load, info = s.state.load, s.state.info
        busy = (load.queued_tokens + (info.pages - load.free_pages) * info.page_size) / _BLOCK
        return (need.prompt_tokens - overlap) / _BLOCK + busy, _tie(s, need)

    prefill = min(fleet.prefills, key=lambda s: cost(s, need.begin(s.worker_id)))
    return _pair(prefill, min(fleet.decodes, key=lambda s: cost(s, 0)), need)


POLICIES: dict[str, Policy] = {
    "default": default,
    "round robin": round_robin,
    "least requests": least_requests,
    "power of two": power_of_two,
    "prefix tree": prefix_tree,
    "KV overlap": kv_overlap,
}


def _pair(prefill: Standing, decode: Standing, need: Need) -> Plan:
    return Plan(prefill.state.info, decode.state.info, work=need.prompt_tokens - need.begin(prefill.worker_id))


def _requests(s: Standing) -> int:
    return s.state.load.running + s.state.load.queued + s.state.unseen


def _least(pool: Sequence[Standing], need: Need) -> Standing:
    return min(pool, key=lambda s: (_requests(s), _tie(s, need)))


def _two(pool: Sequence[Standing], need: Need) -> Sequence[Standing]:
    return sorted(pool, key=lambda s: _tie(s, need))[:2]


def _tie(s: Standing, need: Need) -> int:
    return zlib.crc32(s.worker_id.encode(), need.salt)
