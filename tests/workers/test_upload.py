"""Tests uploads to a GPU with copies that end as late as possible, to show buffers that are reused too early."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from workers.model import mapped
from workers.model.files import read_header
from workers.model.mapped import Files, Spans
from workers.model.upload import upload

FILE = "model.safetensors"


class LateLane:
    """A fake stream that copies a buffer only when it is waited for."""

    def __init__(self, size: int) -> None:
        self.buffers = (torch.empty(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8))
        self._under_way: list[Callable[[], None] | None] = [None, None]
        self.most = 0

    def send(self, which: int, size: int, place: Callable[[Tensor], None]) -> None:
        assert self._under_way[which] is None
        self._under_way[which] = lambda: place(self.buffers[which][:size].clone())
        self.most = max(self.most, sum(copy is not None for copy in self._under_way))

    def wait(self, which: int) -> None:
        copy, self._under_way[which] = self._under_way[which], None
        if copy is not None:
            copy()


@pytest.mark.parametrize(
    ("shape", "spans", "dtype"),
    [
        ((37, 29), ((0, 37), (0, 29)), torch.float32),
        ((37, 29), ((5, 25), (3, 10)), torch.float32),
        ((37, 29), ((5, 25), (0, 29)), torch.float64),
        ((301,), ((7, 300),), torch.bfloat16),
        ((5, 6, 7), ((1, 4), (0, 6), (2, 5)), torch.bfloat16),
        ((), (), torch.float32),
    ],
)
def test_any_part_of_any_tensor_arrives(
    shape: tuple[int, ...], spans: Spans, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "BLOCK_BYTES", 500)
    whole = torch.randn(shape)
    save_file({"before": torch.zeros(3), "t": whole}, tmp_path / FILE)
    entry = read_header(tmp_path / FILE)["t"]
    wanted = whole[tuple(slice(*s) for s in spans)]
    # Of the model's own dtype, and not contiguous where that can be.
    out = torch.full(wanted.shape[::-1], -1.0, dtype=dtype).permute(tuple(range(wanted.ndim))[::-1])
    lane = LateLane(500)
    with closing(Files(tmp_path)) as files:
        upload(lane, files.blocks(FILE, entry, spans, out if spans else out.view(1)))
    assert torch.equal(out, wanted.to(dtype))
    # One is copied while the other is filled.
    assert lane.most == (2 if entry.bytes > 500 else 1)


def test_tensors_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"t": torch.randn(8, 16)}, tmp_path / FILE)
    entry = read_header(tmp_path / FILE)["t"]
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(mapped.os, "posix_fadvise", lambda fd, start, length, how: asked.append((start, length)))
    with closing(Files(tmp_path)) as files:
        files.fill(FILE, entry, ((2, 6), (0, 16)), torch.empty(4, 16))
    assert asked == [(entry.start + 2 * 64, 4 * 64)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parts_arrive_on_a_gpu(tmp_path: Path) -> None:
    whole = torch.randn(9_000, 1_024)
    save_file({"t": whole}, tmp_path / FILE)
    entry = read_header(tmp_path / FILE)["t"]
    out = torch.empty(8_000, 500, dtype=torch.bfloat16, device="cuda")
    with closing(Files(tmp_path)) as files:
        files.fill(FILE, entry, ((1_000, 9_000), (24, 524)), out)
    assert torch.equal(out.cpu(), whole[1_000:, 24:524].bfloat16())
