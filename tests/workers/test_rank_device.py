"""Tests the device of a rank's process."""

import os

import pytest
import torch

from workers.config import WorkerConfig
from workers.rank.process import rank_device

CUDA = WorkerConfig("model", tp=4, device="cuda")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that were made current, on a fake machine with eight GPUs."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    # Set first, so that what the code sets is undone too.
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "")
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    return devices


def test_the_assigned_gpu_or_the_one_of_the_ranks_number(chosen: list[torch.device]) -> None:
    assert rank_device(CUDA, 1, gpu=6) == torch.device("cuda", 6)
    assert rank_device(CUDA, 1, gpu=0) == torch.device("cuda", 0)
    assert rank_device(CUDA, 3, gpu=None) == torch.device("cuda", 3)
    assert chosen == [torch.device("cuda", n) for n in (6, 0, 3)]


def test_streams_get_queues_of_their_own(chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    rank_device(CUDA, 0, None)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "16")
    rank_device(CUDA, 0, None)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "16"


def test_a_cpu_is_one_device() -> None:
    assert rank_device(WorkerConfig("model"), 3, None) == torch.device("cpu")
