"""Tests the disk tier: its files, what a restart finds, and that answers begun from it are the same."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workers.cache.test_engine_cache import engine, greedy, origins, prompt, run
from tests.workers.cache.test_sessions import end_of, settle, tier
from wire.protocol import Mark
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
    on.scheduler.pin(session, [mark], 0.0, 1e9)
    settle(on)
    return whole


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


def test_files_are_the_owner_s_alone(tmp_path: Path) -> None:
    one = on_disk(tmp_path)
    turn(one, prompt(1, 37))
    close(one)
    (file,) = files(tmp_path)
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert os.stat(file.parent).st_mode & 0o777 == 0o700


def test_what_host_memory_gives_up_goes_to_disk(fresh: Engine, tmp_path: Path) -> None:
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


def test_a_budget_holds_what_is_worth_most(tmp_path: Path) -> None:
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
