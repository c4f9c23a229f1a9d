"""Tests collectives among processes: right sums, equal bits, and peers that die or hang."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.forks import FORKS
from workers.collectives import Collectives, RankLost, Rendezvous, Solo, make_collectives
from workers.collectives.shm import ShmCollectives
from workers.collectives.symmetric import MOST_BYTES, SymmetricCollectives, fits
from workers.collectives.torch_dist import TorchCollectives

pytestmark = pytest.mark.process

CPU = torch.device("cpu")
# Elements of the long tensor: more than a slot holds, and no multiple of it.
LONG = 600_001


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _value(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def _scenario(group: Collectives) -> dict[str, Tensor]:
    """Run every operation at least once; returns the results by name."""
    results: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((1, 64), (5, 33), (LONG,)):
            mine = _value(group.rank, shape, dtype)
            results[f"sum {shape} {dtype}"] = group.all_reduce(mine)
        results[f"columns {dtype}"] = group.all_gather(_value(group.rank, (3, 7), dtype), -1)
        results[f"rows {dtype}"] = group.all_gather(_value(group.rank, (3, 7), dtype), 0)
    crossed = _value(group.rank, (6, 4), torch.float32).t()
    results["crossed"] = group.all_reduce(crossed)
    results["long rows"] = group.all_gather(_value(group.rank, (LONG,), torch.float32), 0)
    for i in range(300):
        results["many"] = group.all_reduce(torch.full((3,), float(group.rank + i)))
    group.barrier()
    return results


def _check(results: list[dict[str, Tensor]], rank_order: bool) -> None:
    size = len(results)

    def all_values(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
        return [_value(r, shape, dtype) for r in range(size)]

    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name
    first = results[0]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        for shape in ((1, 64), (5, 33), (LONG,)):
            values = all_values(shape, dtype)
            got = first[f"sum {shape} {dtype}"]
            assert got.dtype == dtype
            torch.testing.assert_close(
                got.double(), torch.stack(values).double().sum(0), rtol=tolerance, atol=tolerance
            )
            if rank_order:
                assert torch.equal(got, sum((v.float() for v in values[1:]), values[0].float()).to(dtype))
        assert torch.equal(first[f"columns {dtype}"], torch.cat(all_values((3, 7), dtype), -1))
        assert torch.equal(first[f"rows {dtype}"], torch.cat(all_values((3, 7), dtype), 0))
    crossed = torch.stack([v.t() for v in all_values((6, 4), torch.float32)]).sum(0)
    torch.testing.assert_close(first["crossed"], crossed)
    assert torch.equal(first["long rows"], torch.cat(all_values((LONG,), torch.float32)))
    assert first["many"].tolist() == [sum(r + 299.0 for r in range(size))] * 3


def _run(kind: str, rank: int, size: int, meeting: Rendezvous, out: Any) -> None:
    torch.set_num_threads(1)
    group = make_collectives(kind, rank, size, meeting, CPU)
    # As bytes: tensors in a queue would travel through files of the sender, which ends.
    out.put((rank, {name: _pack(value) for name, value in _scenario(group).items()}))
    group.close()
    group.close()


def _pack(tensor: Tensor) -> tuple[torch.dtype, bytes]:
    return tensor.dtype, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@contextmanager
def _processes(target: Callable[..., None], size: int, *args: Any) -> Iterator[list[BaseProcess]]:
    """`target(rank, …)` in `size` spawned processes, ended at the latest on the way out."""
    started: list[BaseProcess] = [
        FORKS.Process(target=target, args=(*args[:1], rank, *args[1:]), daemon=True) for rank in range(size)
    ]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join(timeout=10)


@pytest.mark.process
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("kind", "size"), [("shm", 2), ("shm", 4), ("gloo", 2)])
def test_every_operation_among_processes(kind: str, size: int, tmp_path: Path) -> None:
    out: Any = FORKS.Queue()
    meeting = Rendezvous(tmp_path, "127.0.0.1", _free_port())
    with _processes(_run, size, kind, size, meeting, out) as processes:
        packed = dict(out.get(timeout=150) for _ in range(size))
        for process in processes:
            process.join(timeout=20)
        assert [process.exitcode for process in processes] == [0] * size
    shapes = {name: value.shape for name, value in _scenario(Solo()).items()}
    gathered = {"columns": (3, 7 * size), "rows": (3 * size, 7), "long rows": (LONG * size,)}
    results = []
    for rank in range(size):
        results.append(
            {
                name: torch.frombuffer(bytearray(data), dtype=dtype).view(
                    gathered.get(name.removesuffix(f" {dtype}"), shapes[name])
                )
                for name, (dtype, data) in packed[rank].items()
            }
        )
    _check(results, rank_order=kind == "shm")
    assert list(tmp_path.iterdir()) == []


def _dies(folder: Path, rank: int, size: int, out: Any) -> None:
    torch.set_num_threads(1)
    group = ShmCollectives(rank, size, folder)
    if rank == 1:
        os.kill(os.getpid(), 9)
    begun = time.monotonic()
    try:
        group.all_reduce(torch.ones(4))
    except RankLost as lost:
        out.put((str(lost), time.monotonic() - begun))


@pytest.mark.process
@pytest.mark.timeout(200)
def test_a_killed_peer_is_noticed_long_before_the_deadline(tmp_path: Path) -> None:
    out: Any = FORKS.Queue()
    with _processes(_dies, 2, tmp_path, 2, out):
        message, seconds = out.get(timeout=150)
    assert message.startswith("rank 1 died")
    assert seconds < 10


def _together(size: int, timeout_s: float) -> list[ShmCollectives]:
    """A shared-memory group whose ranks are all in this process."""
    folder = Path(tempfile.mkdtemp())
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda r: ShmCollectives(r, size, folder, timeout_s, slot_bytes=4096), range(size)))


def test_a_silent_peer_is_lost_at_the_deadline() -> None:
    group = _together(2, timeout_s=0.3)
    with pytest.raises(RankLost, match=r"rank 1 did not answer rank 0 within 0\.3 s"):
        group[0].all_reduce(torch.ones(4))
    for rank in group:
        rank.close()


def test_a_peer_that_closed_is_lost_and_a_closed_group_refuses() -> None:
    group = _together(2, timeout_s=30)
    group[1].close()
    with pytest.raises(RankLost, match="rank 1 died"):
        group[0].barrier()
    with pytest.raises(RuntimeError, match="closed"):
        group[1].barrier()
    group[0].close()


def test_sums_of_many_shapes_beyond_the_slot() -> None:
    group = _together(3, timeout_s=60)

    def sums(rank: int) -> list[Tensor]:
        return [group[rank].all_reduce(torch.arange(n).float() * (rank + 1)) for n in (1, 1023, 1024, 1025, 5000)]

    with ThreadPoolExecutor(3) as pool:
        for got in pool.map(sums, range(3)):
            assert all(torch.equal(s, torch.arange(len(s)).float() * 6) for s in got)
    for rank in group:
        rank.close()


def test_a_missing_peer_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RankLost, match="rank 1 did not come to"):
        ShmCollectives(0, 2, tmp_path, timeout_s=0.2)
    assert list(tmp_path.iterdir()) == []


def test_a_file_left_by_a_dead_group_is_not_joined(tmp_path: Path) -> None:
    (tmp_path / "rank-1").write_bytes(bytes(3 << 20))
    with pytest.raises(RankLost, match="rank 1 did not come"):
        ShmCollectives(0, 2, tmp_path, timeout_s=0.2)


def _pair(kind: str, folder: Path, timeout_s: float) -> list[Collectives]:
    """Two ranks of this process."""
    port = _free_port()

    def make(rank: int) -> Collectives:
        if kind == "shm":
            return ShmCollectives(rank, 2, folder, timeout_s)
        return TorchCollectives("gloo", rank, 2, "127.0.0.1", port, CPU, timeout_s)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(make, range(2)))


@pytest.mark.parametrize("kind", ["shm", "gloo"])
def test_a_rank_that_loads_longer_than_operations_may_take_is_not_lost(kind: str, tmp_path: Path) -> None:
    timeout_s = 0.5
    first, late = _pair(kind, tmp_path, timeout_s)
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(first.barrier, 60.0)
        # Past what an operation waits: this is the lateness the test is about.
        time.sleep(2 * timeout_s)
        assert not loaded.done()
        late.barrier(60.0)
        loaded.result(60)
        summed = pool.submit(first.all_reduce, torch.ones(3))
        late.all_reduce(torch.ones(3))
        assert summed.result(60).tolist() == [2.0] * 3
    with pytest.raises(RankLost, match=r"within 0\.3 s"):
        first.barrier(0.3)
    late.close()
    first.close()


def test_gpus_are_connected_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Nccl:
        class Options:
            pass

        def __init__(self, *_: object) -> None:
            done.append("made")

        def allreduce(self, tensors: list[Tensor]) -> Any:
            done.append("summed")
            return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Nccl, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    TorchCollectives("nccl", 0, 1, "127.0.0.1", _free_port(), CPU).close()
    assert done == ["made", "summed"]


def test_a_missing_gloo_peer_is_lost() -> None:
    with pytest.raises(RankLost, match="rank 0 of 2 failed in meet"):
        TorchCollectives("gloo", 0, 2, "127.0.0.1", _free_port(), CPU, timeout_s=1.0)


def test_one_rank_needs_nobody(tmp_path: Path) -> None:
    group = make_collectives("auto", 0, 1, Rendezvous(tmp_path, "127.0.0.1", 1), CPU)
    x = torch.randn(2, 3)
    assert isinstance(group, Solo)
    assert group.all_reduce(x) is x
    assert group.all_gather(x, 0) is x


@pytest.mark.parametrize(
    ("kind", "device", "message"),
    [
        ("mpi", "cpu", "must be auto, shm, gloo, nccl or symm, not 'mpi'"),
        ("nccl", "cpu", "'nccl' do not work on cpu"),
        ("symm", "cpu", "'symm' do not work on cpu"),
        ("shm", "cuda", "'shm' do not work on cuda"),
    ],
)
def test_impossible_kinds_are_refused(kind: str, device: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_collectives(kind, 0, 2, Rendezvous(tmp_path, "127.0.0.1", 1), torch.device(device))


def test_which_sums_take_the_shared_memory_of_gpus() -> None:
    elements = MOST_BYTES // 2
    assert fits(torch.empty(1, elements, dtype=torch.bfloat16))
    assert not fits(torch.empty(elements + 8, dtype=torch.bfloat16))
    # The kernel loads 16 bytes at a time.
    assert not fits(torch.empty(7, dtype=torch.bfloat16))
    assert not fits(torch.empty(0))
    assert not fits(torch.empty(16, dtype=torch.float64))


def test_gpus_too_old_for_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"9\.0 or more, found 8\.0; use nccl"):
        SymmetricCollectives(0, 2, "127.0.0.1", _free_port(), torch.device("cuda"))
