"""Tests the directory's bookkeeping of workers."""

from msgspec import structs

from cluster.entries import EXPIRY_S, Entries, Failure
from wire.protocol import RankInfo, WorkerInfo


def worker(worker_id: str) -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker_id, role="decode", host="127.0.0.1", port=1, node="n", pid=1, weights_id="w", layout="l",
        vocab_size=8, page_size=64, pages=4, slots=2, max_model_len=256,
        ranks=(RankInfo(0, 2, "n", "cpu", "127.0.0.1", 3),),
    )  # fmt: skip


def ids(entries: Entries) -> list[str]:
    return [w.worker_id for w in entries.listing.workers]


def test_renewing_an_entry_keeps_the_version_and_a_new_worker_changes_it() -> None:
    entries = Entries("e")
    empty = entries.listing.version
    assert entries.enter(worker("a"), 0.0)
    version = entries.listing.version
    assert version != empty
    assert not entries.enter(worker("a"), 1.0)
    assert entries.listing.version == version
    assert entries.enter(structs.replace(worker("a"), port=9), 1.0)
    assert entries.enter(worker("b"), 1.0)
    assert ids(entries) == ["a", "b"]


def test_an_entry_expires_unless_renewed() -> None:
    entries = Entries("e")
    entries.enter(worker("a"), 0.0)
    entries.enter(worker("b"), 0.0)
    entries.enter(worker("a"), 1.0)
    assert not entries.expire(EXPIRY_S - 0.01)
    assert entries.expire(EXPIRY_S)
    assert ids(entries) == ["a"]
    assert entries.expire(EXPIRY_S + 1.0)
    assert ids(entries) == []


def test_a_worker_that_leaves_or_fails_is_removed() -> None:
    entries = Entries("e")
    entries.enter(worker("a"), 0.0)
    entries.enter(worker("b"), 0.0)
    assert entries.leave("a")
    assert not entries.leave("a")
    failure = Failure("b", "decode", "rank 1 ended")
    assert entries.fail(failure)
    assert ids(entries) == []
    assert entries.listing.failures == (failure,)


def test_failures_are_bounded_and_the_last_ones_stay() -> None:
    entries = Entries("e")
    for i in range(100):
        entries.fail(Failure(f"w{i}", "prefill", "why"))
    kept = [f.worker_id for f in entries.listing.failures]
    assert len(kept) < 100
    assert kept[-1] == "w99"


def test_versions_of_two_directories_differ() -> None:
    assert Entries("x").listing.version != Entries("y").listing.version


def test_pools_that_have_had_a_worker_are_remembered() -> None:
    entries = Entries("e")
    assert entries.listing.served == frozenset()
    entries.enter(worker("a"), 0.0)
    entries.enter(structs.replace(worker("p"), role="prefill"), 0.0)
    entries.fail(Failure("p", "prefill", "it ended"))
    assert entries.listing.served == {"decode", "prefill"}
