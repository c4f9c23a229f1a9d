"""Tests the disk tier: its files, what a restart finds, and that answers begun from it are the same."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workers.cache.test_engine_cache import engine, greedy, origins, prompt, run
from tests.workers.cache.test_sessions import end_of, settle, tier
from wire.protocol import Mark
from wire.snapshot_file import read_head
from wire.tokens import TokenIds
from workers.config import StateDtype
from workers.rank.engine import Engine

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def fresh() -> Engine:
    return engine(states=0)


def on_disk(folder: Path, host_bytes: int = 1 << 30, **more: object) -> Engine:
    settings: dict[str, object] = {"cache_disk_dir": str(folder), "cache_disk_bytes": 1 << 30, **more}
    return engine(states=8, host_bytes=host_bytes, **settings)


def close(on: Engine) -> None:
    on.host.close()
    assert on.disk is not None
    on.disk.close()


def turn(on: Engine, ids: list[int], session: str = "s") -> list[int]:
    """Run a turn of a session and pin its end; returns its tokens."""
    whole = [*ids, *run(on, [ids])[0]]
    mark = end_of(on, whole)
    now = time.monotonic()
    on.scheduler.pin(session, [mark], now, now + 1e9)
    written(on)
    return whole


def written(on: Engine) -> None:
    """Let all be written and erased that is to be."""
    settle(on)
    on.host._disk.submit(int).result()


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("others", [0, 16])
def test_continued_after_a_restart(fresh: Engine, tmp_path: Path, others: int, dtype: StateDtype) -> None:
    first = prompt(1, 37)
    beside = [prompt(100 + i, 20 + i) for i in range(others)]
    one = on_disk(tmp_path, cache_state_dtype=dtype)
    whole = turn(one, first)
    mark = end_of(one, whole)
    close(one)
    two = on_disk(tmp_path, cache_state_dtype=dtype)
    assert tier(two.scheduler.cache, mark) == "disk"
    second = [*whole, *prompt(7, 9)]
    got = run(two, [second, *beside])
    assert origins(two)["disk"] == 1
    if dtype == "float32":
        assert got == run(fresh, [second, *beside])
    if not others:  # else their states may have taken its place on the device by now
        assert tier(two.scheduler.cache, mark) == "device"
    close(two)


def test_continued_after_a_restart_beside_aborts_and_with_drafts(fresh: Engine, tmp_path: Path) -> None:
    one = on_disk(tmp_path, speculate=3)
    whole = turn(one, prompt(1, 37))
    close(one)
    two = on_disk(tmp_path, speculate=3)
    second = [*whole, *prompt(7, 9)]
    # Some end while they wait for the same file, some while they compute behind it.
    doomed = [two.add([*whole, *prompt(20 + n, 3 + n)], greedy(12)) for n in range(4)]
    wanted = two.add(second, greedy(12))
    tokens: list[int] = []
    while wanted in two.scheduler.sequences:
        for output in two.step():
            tokens += output.token_ids if output.request_id == wanted else ()
        if doomed:
            two.scheduler.remove(doomed.pop())
    assert [tuple(tokens)] == run(fresh, [second])
    assert origins(two)["disk"]
    settle(two)
    assert two.scheduler.slots.free == 8
    close(two)


def grown(folder: Path, turns: int, **more: object) -> tuple[Engine, list[list[int]]]:
    """An engine on which a session had so many turns, and the tokens at the end of each."""
    on = on_disk(folder, **more)
    out = [turn(on, prompt(1, 37))]
    for n in range(turns - 1):
        out.append(turn(on, [*out[-1], *prompt(20 + n, 9)]))
    return on, out


def sizes(on: Engine) -> tuple[int, int]:
    """Bytes of a state and of a token's latents."""
    budget = on.scheduler.cache.budget
    return budget.state_bytes, budget.token_bytes


def test_a_turn_writes_its_own_latents_alone_also_after_a_restart(fresh: Engine, tmp_path: Path) -> None:
    one, ends = grown(tmp_path, 3)
    close(one)
    two = on_disk(tmp_path)
    ends.append(turn(two, [*ends[-1], *prompt(30, 9)]))
    ends.append(turn(two, [*ends[-1], *prompt(31, 9)]))
    close(two)
    state, token = sizes(one)
    heads = [read_head(path) for path in files(tmp_path)]
    spans = sorted((head.head.start, head.head.position) for head in heads)
    stops = [len(ids) - 1 for ids in ends]
    assert spans == list(zip([0, *stops[:-1]], stops, strict=True))
    assert sum(head.bytes for head in heads) < len(ends) * (state + 4096) + stops[-1] * (token + 4)
    three = on_disk(tmp_path)
    # Both a branch from the middle and the longest end are whole.
    for ids in (ends[1], ends[-1]):
        again = [*ids, *prompt(40, 5)]
        assert run(three, [again]) == run(fresh, [again])
    assert origins(three)["disk"] == 2
    close(three)


def test_a_state_that_went_leaves_the_latents_that_others_need(fresh: Engine, tmp_path: Path) -> None:
    one, ends = grown(tmp_path, 3)
    cache = one.scheduler.cache
    middle = cache.index.by_digest(*_named(end_of(one, ends[1])))
    assert middle is not None
    before = cache.disk.bytes
    cache.leave_file(middle)
    written(one)
    assert before - cache.disk.bytes == sizes(one)[0]
    close(one)
    two = on_disk(tmp_path)
    assert two.disk is not None
    assert two.disk.damaged == 0
    # Two states are left, and the bytes of what is there are those that are counted.
    assert len(two.scheduler.cache.disk) == 2
    assert two.scheduler.cache.disk.bytes == sum(path.stat().st_size for path in files(tmp_path))
    again = [*ends[2], *prompt(40, 5)]
    assert run(two, [again]) == run(fresh, [again])
    assert origins(two)["disk"] == 1
    close(two)


def test_a_line_with_a_gap_is_not_used(fresh: Engine, tmp_path: Path) -> None:
    one, ends = grown(tmp_path, 3)
    close(one)
    (first,) = [path for path in files(tmp_path) if not read_head(path).head.start]
    first.unlink()
    two = on_disk(tmp_path)
    assert two.disk is not None
    assert two.disk.damaged == 2
    assert not files(tmp_path)
    again = [*ends[2], *prompt(40, 5)]
    assert run(two, [again]) == run(fresh, [again])
    close(two)


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_files_not_used_for_long_are_erased(tmp_path: Path) -> None:
    one, ends = grown(tmp_path, 2, cache_disk_ttl_s=1000.0)
    turn(one, prompt(9, 30), "other")
    cache = one.scheduler.cache
    for mark, ago in ((end_of(one, ends[0]), 1001.0), (end_of(one, ends[1]), 900.0)):
        kept = cache.index.by_digest(*_named(mark))
        assert kept is not None
        kept.used -= ago
    cache.expire_files(time.monotonic())
    written(one)
    assert len(cache.disk) == 2
    # The first turn's latents are still needed.
    assert len(files(tmp_path)) == 3
    close(one)
    for path in files(tmp_path):
        if read_head(path, may_be_cut=True).head.start:
            aged(path, 1001.0)
    two = on_disk(tmp_path, cache_disk_ttl_s=1000.0)
    assert len(files(tmp_path)) == len(two.scheduler.cache.disk) == 1
    close(two)
    # So are those of other weights, and those of workers that do not come back.
    three = on_disk(tmp_path, cache_disk_ttl_s=1000.0, cache_state_dtype="int8")
    assert three.disk is not None
    assert three.disk.foreign == 1
    aged(files(tmp_path)[0], 1001.0)
    assert three.disk.tend((), 0) == ()
    assert not files(tmp_path)
    close(three)


def test_a_file_that_a_session_uses_is_young_again(tmp_path: Path) -> None:
    one, ends = grown(tmp_path, 1)
    (path,) = files(tmp_path)
    aged(path, 500.0)
    mark, now = end_of(one, ends[0]), time.monotonic()
    one.scheduler.pin("s", [mark], now, now + 1e9, again=True)
    assert one.scheduler.cache.disk.take_used() == []
    one.scheduler.pin("fork", [mark], now, now + 1e9)
    assert one.disk is not None
    one.disk.tend(one.scheduler.cache.disk.take_used(), 0)
    assert time.time() - path.stat().st_mtime < 500.0
    close(one)


def test_sessions_that_are_pinned_again_are_evicted_last(tmp_path: Path) -> None:
    one, ends = grown(tmp_path, 1)
    close(one)
    two = on_disk(tmp_path, cache_disk_bytes=3 * files(tmp_path)[0].stat().st_size)
    cache, mark = two.scheduler.cache, end_of(two, ends[0])
    two.scheduler.pin("s", [mark], 0.0, 1e9, again=True)
    for n in range(6):  # each is worth more, being longer
        turn(two, prompt(10 + n, 42), "another")
    assert tier(cache, mark) == "disk"
    two.scheduler.unpin("s")
    written(two)
    assert tier(cache, mark) is None
    close(two)


def test_a_deleted_session_s_files_are_erased_but_not_its_fork_s(fresh: Engine, tmp_path: Path) -> None:
    one, ends = grown(tmp_path, 2)
    fork = turn(one, [*ends[0], *prompt(50, 9)], "fork")
    one.scheduler.unpin("s")
    written(one)
    one.scheduler.cache.clear()
    close(one)
    assert sorted(read_head(path).head.position for path in files(tmp_path)) == [len(ends[0]) - 1, len(fork) - 1]
    two = on_disk(tmp_path)
    two.scheduler.pin("fork", [end_of(two, fork)], 0.0, 1e9, again=True)
    again = [*fork, 5, 6]
    assert run(two, [again]) == run(fresh, [again])
    two.scheduler.unpin("fork")
    written(two)
    close(two)
    assert not files(tmp_path)


def test_the_files_of_a_worker_that_is_gone_are_taken_over(
    fresh: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stays = grown(tmp_path, 2)[0], on_disk(tmp_path)
    cache = stays.scheduler.cache
    assert stays.disk is not None
    assert gone.disk is not None
    there = files(tmp_path)
    monkeypatch.setattr("workers.cache.disk_folder._GONE_S", 0.0)
    assert stays.disk.tend((), 1 << 30) == ()  # it is there yet
    close(gone)
    monkeypatch.undo()
    assert stays.disk.tend((), 1 << 30) == ()  # it may come back
    monkeypatch.setattr("workers.cache.disk_folder._GONE_S", 0.0)
    assert stays.disk.tend((), 1000) == ()  # no room
    assert files(tmp_path) == there
    told: list[str | None] = []
    cache.on_change = lambda kept: told.append(cache.tier(kept))
    cache.take_files(stays.disk.tend((), 1 << 30), time.monotonic())
    assert told == ["disk", "disk"]
    assert {path.parent for path in files(tmp_path)} == {stays.disk.folder.path}
    longest = max(cache.index, key=lambda k: k.position)
    again = [*TokenIds(longest.ids), 5, 6, 7]
    assert run(stays, [again]) == run(fresh, [again])
    assert origins(stays)["disk"] == 1
    close(stays)


def _named(mark: Mark) -> tuple[int, bytes]:
    return mark.position, mark.digest


def test_files_are_the_owner_s_alone(tmp_path: Path) -> None:
    one = on_disk(tmp_path)
    turn(one, prompt(1, 37))
    close(one)
    (file,) = files(tmp_path)
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert os.stat(file.parent).st_mode & 0o777 == 0o700


def test_snapshots_evicted_from_host_memory_go_to_disk(fresh: Engine, tmp_path: Path) -> None:
    one = on_disk(tmp_path, host_bytes=200_000)
    sessions = [prompt(n, 40) for n in range(8)]
    wholes = [[*ids, *run(one, [ids])[0]] for ids in sessions]
    settle(one)
    tiers = {tier(one.scheduler.cache, end_of(one, whole)) for whole in wholes if _kept(one, whole)}
    assert "disk" in tiers
    again = [[*whole, 5, 6, 7] for whole in wholes]
    assert [run(one, [ids]) for ids in again] == [run(fresh, [ids]) for ids in again]
    assert origins(one)["disk"]
    close(one)


def _kept(on: Engine, whole: list[int]) -> bool:
    return any(k.position == len(whole) - 1 for k in on.scheduler.cache.index)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def _nonsense(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(500))


def _gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_flip, _cut, _nonsense, _gone])
@pytest.mark.parametrize("when", ["before a restart", "while it is used"])
def test_a_damaged_file_is_never_used(fresh: Engine, tmp_path: Path, damage: Callable[[Path], None], when: str) -> None:
    one = on_disk(tmp_path)
    whole = turn(one, prompt(1, 37))
    close(one)
    (file,) = files(tmp_path)
    if when == "before a restart":
        damage(file)
    two = on_disk(tmp_path)
    if when == "while it is used":
        damage(file)
    second = [*whole, 5, 6, 7]
    assert run(two, [second]) == run(fresh, [second])
    assert origins(two)["disk"] == 0
    settle(two)
    close(two)
    assert file not in files(tmp_path)


def test_files_of_other_weights_are_counted_and_left_alone(tmp_path: Path) -> None:
    one = on_disk(tmp_path)
    whole = turn(one, prompt(1, 37))
    mark = end_of(one, whole)
    close(one)
    there = files(tmp_path)
    other = on_disk(tmp_path, cache_state_dtype="bfloat16")
    assert other.disk is not None
    assert (other.disk.foreign, other.disk.damaged) == (1, 0)
    assert tier(other.scheduler.cache, mark) is None
    # What a prompt could have begun from, had it been of these weights, says so.
    run(other, [[*whole, 5, 6, 7]])
    run(other, [prompt(9, 30)])
    misses = other.scheduler.cache.totals.misses
    assert {why: count for why, count in misses.items() if count} == {"weights": 1, "new": 1}
    close(other)
    assert files(tmp_path) == there


def test_files_of_other_ranks_are_counted_and_left_alone(tmp_path: Path) -> None:
    one = on_disk(tmp_path)
    turn(one, prompt(1, 37))
    close(one)
    (file,) = files(tmp_path)
    file.rename(file.with_name(file.name.replace("rank0of1", "rank0of2")))
    there = files(tmp_path)
    other = on_disk(tmp_path)
    assert other.disk is not None
    assert (other.disk.foreign, other.disk.damaged) == (1, 0)
    close(other)
    assert files(tmp_path) == there


def test_the_disk_budget_keeps_the_most_valuable_files(tmp_path: Path) -> None:
    one = on_disk(tmp_path)
    turn(one, prompt(1, 37))
    close(one)
    size = files(tmp_path)[0].stat().st_size
    two = on_disk(tmp_path, cache_disk_bytes=3 * size)
    for n in range(6):
        turn(two, prompt(10 + n, 37), f"s{n}")
    close(two)
    assert 1 <= len(files(tmp_path)) <= 3
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 3 * size * 1.1


def test_workers_of_a_host_have_folders_of_their_own(tmp_path: Path) -> None:
    one, two = on_disk(tmp_path), on_disk(tmp_path)
    assert one.disk is not None
    assert two.disk is not None
    assert one.disk.folder.path != two.disk.folder.path
    close(one)
    three = on_disk(tmp_path)
    assert three.disk is not None
    assert three.disk.folder.path == one.disk.folder.path
    close(two)
    close(three)


def test_a_full_disk_costs_no_answer(fresh: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workers.rank.host_store.write_part", full)
    one = on_disk(tmp_path)
    whole = turn(one, prompt(1, 37))
    mark: Mark = end_of(one, whole)
    one.host.close()
    one._take_events(wait=True)
    kept = one.scheduler.cache.index.by_digest(mark.position, mark.digest)
    assert kept is not None
    assert kept not in one.scheduler.cache.disk
    assert tier(one.scheduler.cache, mark) == "device"
