"""Tests the index of kept prefixes against what each worker reports."""

from hypothesis import given
from hypothesis import strategies as st

from router.relay.policy import Held
from router.relay.prefixes import Candidates, Holder, PrefixIndex
from wire.protocol import KeptEvent

DIGESTS = [bytes([n]) * 16 for n in range(6)]
CANDIDATES = Candidates.of((10 * (n + 1), DIGESTS[n]) for n in reversed(range(6)))
# A worker, a digest, and where the snapshot lies now; None of both: the worker's connection ends.
changes = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.one_of(st.none(), st.tuples(st.integers(0, 5), st.sampled_from(("device", "host", None)))),
    ),
    max_size=40,
)


@given(changes)
def test_each_worker_s_longest_beginning_is_found(
    changes: list[tuple[str, tuple[int, str | None] | None]],
) -> None:
    index = PrefixIndex()
    holders = {name: Holder(name) for name in "abc"}
    kept: dict[str, dict[int, str]] = {name: {} for name in "abc"}
    for name, change in changes:
        if change is None:
            index.leave(holders[name])
            holders[name] = Holder(name)
            kept[name].clear()
            continue
        number, tier = change
        index.update(holders[name], [KeptEvent(10 * (number + 1), DIGESTS[number], tier)])  # type: ignore[arg-type]
        if tier is None:
            kept[name].pop(number, None)
        else:
            kept[name][number] = tier
    expected = {
        name: Held(10 * (max(there) + 1), there[max(there)] == "device") for name, there in kept.items() if there
    }
    assert index.held(CANDIDATES) == expected
    assert len(index) == len({number for there in kept.values() for number in there})
    for name, holder in holders.items():
        assert holder.entries == len(kept[name])


def test_added_and_removed_prefixes_leave_nothing_behind() -> None:
    index, holder = PrefixIndex(), Holder("a")
    for n in range(10_000):
        digest = (n << 64).to_bytes(16, "big")[::-1]
        index.update(holder, [KeptEvent(1, digest, "device")])
        index.update(holder, [KeptEvent(1, digest, None)])
    assert len(index) == 0
    assert len(holder.log) < 2_048
