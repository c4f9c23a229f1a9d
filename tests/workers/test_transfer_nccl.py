"""Tests links over NCCL without a GPU, with fake groups in the CPU's memory."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from tests.workers.transfer_ends import ends, export, snapshot
from workers.schedule.step import Expect
from workers.transfer import endpoint, incoming, outgoing, torch_dist
from workers.transfer.channel import LinkBroken
from workers.transfer.messages import PartHead
from workers.transfer.torch_dist import GroupReceiver, GroupSender

CPU = torch.device("cpu")


class Work:
    """A fake operation of torch's NCCL, which reports failed ones as completed. polls: how often it is pending."""

    def __init__(
        self, polls: int = 0, error: Exception | None = None, meanwhile: Callable[[], None] | None = None
    ) -> None:
        self._polls = polls
        self._error = error
        self._meanwhile = meanwhile

    def is_completed(self) -> bool:
        self._polls -= 1
        if self._polls < 0 and self._meanwhile is not None:
            self._meanwhile()
        return self._polls < 0

    def exception(self) -> Exception | None:
        return self._error


class Group:
    """An end of a fake NCCL group. It returns `works` in order, then successful operations."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.moved: list[tuple[str, int]] = []
        self.aborted = 0

    def send(self, tensors: list[Tensor], rank: int, tag: int) -> Work:
        return self._start("send", tensors)

    def recv(self, tensors: list[Tensor], rank: int, tag: int) -> Work:
        return self._start("recv", tensors)

    def abort(self) -> None:
        self.aborted += 1

    def _start(self, what: str, tensors: list[Tensor]) -> Work:
        self.moved.append((what, tensors[0].numel()))
        return self.works.pop(0) if self.works else Work()


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    """The group that the test gets whenever an NCCL group is made."""
    made = Group()
    monkeypatch.setattr(torch_dist, "_nccl", lambda store, rank: made)
    return made


def _receiver(gone: bool = False) -> GroupReceiver:
    control: Any = SimpleNamespace(gone=lambda: gone)
    return GroupReceiver(SimpleNamespace(kind="nccl", store=HashStore()), CPU, "127.0.0.1", control)  # type: ignore[arg-type]


def test_an_operation_that_failed_is_not_taken_for_a_piece(group: Group) -> None:
    receiver = _receiver()
    group.works = [Work(3, RuntimeError("NCCL error: remote process exited\nstack"))]
    with pytest.raises(LinkBroken, match=r"^nccl: NCCL error: remote process exited$"):
        receiver.receive(torch.empty(8, dtype=torch.uint8))
    # Aborted before anybody can have the memory that a kernel may still write to.
    assert group.aborted == 1


def test_an_operation_that_an_abort_ended_is_not_taken_for_a_piece(group: Group) -> None:
    receiver = _receiver()
    group.works = [Work(3, meanwhile=receiver.close)]
    with pytest.raises(LinkBroken, match="the link is closed"):
        receiver.receive(torch.empty(8, dtype=torch.uint8))
    assert group.aborted == 1


def test_a_peer_that_dies_is_noticed_while_nothing_moves(group: Group) -> None:
    group.works = [Work(polls=1_000_000)]
    with pytest.raises(LinkBroken, match="closed the connection or died"):
        _receiver(gone=True)
    assert group.aborted == 1


def test_a_link_is_connected_at_the_handshake(group: Group) -> None:
    """NCCL connects at the first operation, which takes seconds, and no snapshot may wait for that."""
    _receiver()
    meeting: Any = SimpleNamespace(offer=SimpleNamespace(kind="nccl"), store=HashStore())
    GroupSender(meeting, CPU, "127.0.0.1", SimpleNamespace(gone=lambda: False))  # type: ignore[arg-type]
    assert group.moved == [("recv", 1), ("send", 1)]


def test_link_groups_alone_survive_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Options:
        def __init__(self, is_high_priority_stream: bool = False) -> None:
            self.config = SimpleNamespace(max_ctas=None)
            self.is_high_priority_stream = is_high_priority_stream

    class Nccl(Group):
        def __init__(self, store: object, rank: int, size: int, options: Options) -> None:
            super().__init__()
            seen.append({name: value for name, value in os.environ.items() if name.startswith("TORCH_NCCL_")})

    Nccl.Options = Options  # type: ignore[attr-defined]
    monkeypatch.setattr(dist, "ProcessGroupNCCL", Nccl, raising=False)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setenv("TORCH_NCCL_ENABLE_MONITORING", "1")
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    _receiver()
    # 0 everywhere: what fails is neither cleaned up by ending the process nor reported to the worker's own group.
    assert [set(found.values()) for found in seen] == [{"0"}]
    assert {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_DUMP_ON_TIMEOUT"} < set(seen[0])
    assert os.environ["TORCH_NCCL_ENABLE_MONITORING"] == "1"
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in os.environ


def test_a_part_is_announced_once_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the announcement on, the receiving GPU waits with multiprocessors on which it can't compute."""
    said: list[str] = []
    monkeypatch.setattr(endpoint, "once_computed", lambda device: lambda: said.append("computed"))
    send = outgoing.Control.send

    def sending(self: Any, message: Any) -> None:
        if isinstance(message, PartHead):
            said.append("announced")
        send(self, message)

    monkeypatch.setattr(outgoing.Control, "send", sending)
    latents, state = snapshot(0, 64)
    with ends("gloo") as (prefill, decode):
        decode.transfers.expect(Expect("r", "P", 64))
        export(prefill, "r", 0, latents[:32], None)
        export(prefill, "r", 32, latents[32:], state)
        prefill.wait_sent("r")
    assert said == ["computed", "announced"] * 2


def test_links_work_on_streams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would use the forward pass's stream, which is a new thread's current one."""
    entered: list[str] = []

    class Own:
        def __init__(self, device: torch.device) -> None:
            pass

        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    for side in (incoming, outgoing):
        monkeypatch.setattr(side, "own_stream", Own)
    latents, state = snapshot(0, 8)
    with ends("gloo") as (prefill, decode):
        decode.transfers.expect(Expect("r", "P", 8))
        export(prefill, "r", 0, latents, state)
        prefill.wait_sent("r")
        # The receiver, and the sender's handshake, which has ended, and its writer.
        assert entered.count("in") == 3
        assert entered.count("out") == 1
    assert entered.count("out") == 3
